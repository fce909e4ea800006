"""The official Anthropic SDK, asking again as often as it likes, of a server where every message fails."""

from typing import Any

import anthropic
from anthropic import Anthropic

QUESTION: Any = [{"role": "user", "content": "x"}]


def check_a_message_that_fails(url: str) -> None:
    fail(url)


def check_a_stream_that_fails(url: str) -> None:
    fail(url, stream=True)


def fail(url: str, **body: Any) -> None:
    assert status_of(url, **body) in (408, 500)


def status_of(url: str, **body: Any) -> int:
    client = Anthropic(base_url=url, api_key="none", timeout=60)
    assert client.max_retries > 0
    try:
        client.messages.create(model="fake-model", messages=QUESTION, max_tokens=4, **body)
    except anthropic.APIStatusError as error:
        return int(error.status_code)
    raise AssertionError("the message did not fail")
