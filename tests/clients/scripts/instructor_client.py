"""Instructor: answers as objects of a pydantic model, in its three ways to ask for them."""

from typing import Any

import instructor

from tests.clients.scripts.openai_sdk import COUNTRY_QUESTION, MODEL, Country, client_of

FRANCE = {"country": "France", "capital": "Paris"}


def answer(url: str, mode: Any) -> Any:
    client = instructor.from_openai(client_of(url), mode=mode)
    found = client.chat.completions.create(
        model=MODEL, messages=COUNTRY_QUESTION, temperature=0, response_model=Country, max_retries=0
    )
    return found.model_dump()


def check_json_schema_mode(url: str) -> None:
    assert answer(url, instructor.Mode.JSON_SCHEMA) == FRANCE


def check_json_mode(url: str) -> None:
    assert answer(url, instructor.Mode.JSON) == FRANCE


def check_tools_mode(url: str) -> None:
    assert answer(url, instructor.Mode.TOOLS) == FRANCE
