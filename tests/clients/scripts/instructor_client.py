"""Instructor: answers as objects of a pydantic model."""

from typing import Any

import instructor

from tests.clients.scripts.openai_sdk import COUNTRY_QUESTION, MODEL, Country, client_of


def country(url: str, mode: Any) -> Any:
    client = instructor.from_openai(client_of(url), mode=mode)
    return client.chat.completions.create(
        model=MODEL, messages=COUNTRY_QUESTION, temperature=0, response_model=Country, max_retries=0
    )


def check_json_schema_mode(url: str) -> None:
    assert country(url, instructor.Mode.JSON_SCHEMA) == Country(country="France", capital="Paris")


def check_json_mode(url: str) -> None:
    assert country(url, instructor.Mode.JSON) == Country(country="France", capital="Paris")


def check_tools_mode(url: str) -> None:
    assert country(url, instructor.Mode.TOOLS) == Country(country="France", capital="Paris")
