"""What errors say of values that were sent: in the words of JSON, and not too many of them."""

from typing import Any

import pytest

from orcinus.server.errors import MAX_SHOWN_CHARS, shown
from tests.unit.server.serving import Serving, error_of, user


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ('it\'s "中"\n', r'"it\'s \"中\"\n"'.replace(r"\'", "'")),
        ([1, None, ["x"]], '[1, null, ["x"]]'),
        ({"a": False}, '{"a": false}'),
        ([], "[]"),
    ],
)
def test_a_value_is_shown_as_json(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("value", ["x" * 10**6, ["x" * 10**6], [1] * 10**6, dict.fromkeys(map(str, range(10**6)))])
def test_a_long_value_is_cut(value: Any) -> None:
    assert len(shown(value)) == MAX_SHOWN_CHARS
    assert shown(value).endswith("...")


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a boolean": ({"temperature": True}, "got true"),
    "a string": ({"n": "x"}, 'got "x"'),
    "a list": ({"max_tokens": [1, 2]}, "got [1, 2]"),
    "an object": ({"stream_options": 5, "stream": True}, "must be an object, got 5"),
    "one of some": ({"reasoning_effort": None, "response_format": {"type": "x"}}, 'got "x"'),
    "a role": ({"messages": [{"role": None, "content": "x"}]}, "got null"),
    "content": ({"messages": [user({"a": True})]}, 'got {"a": true}'),
    "a choice": ({"tool_choice": False, "tools": []}, "got false"),
}


@pytest.mark.parametrize(("body", "words"), CASES.values(), ids=CASES.keys())
async def test_errors_show_what_came_as_json(served: Serving, body: dict[str, Any], words: str) -> None:
    error = error_of(await served.post("/v1/chat/completions", **{"messages": [user("hi")], **body}), 400)
    assert words in error["message"]
