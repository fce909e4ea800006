"""A strict reader of the streams of Anthropic's Messages API: checks framing and order, and gives the message."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import from_json


def named_events(text: str) -> Iterator[dict[str, Any]]:
    """The JSON of a stream's events, whose framing and names are checked."""
    *events, rest = text.split("\n\n")
    assert rest == ""
    for event in events:
        name, data = event.split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert name == f"event: {content['type']}"
        yield content


def put_together(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of the events, whose order is checked."""
    events = iter(events)
    first = next(events)
    assert first["type"] == "message_start"
    answer: dict[str, Any] = first["message"]
    assert (answer["content"], answer["stop_reason"], answer["stop_sequence"]) == ([], None, None)
    content: list[dict[str, Any]] = answer["content"]
    texts: list[str] = []
    is_open = False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(content)
            content.append(event["content_block"])
            texts.append("")
            is_open = True
        elif event["type"] == "content_block_delta":
            assert is_open
            assert event["index"] == len(content) - 1
            texts[-1] += take_delta(content[-1], event["delta"])
        elif event["type"] == "content_block_stop":
            assert is_open
            assert event["index"] == len(content) - 1
            is_open = False
        else:
            assert event["type"] == "message_delta"
            break
    assert not is_open
    assert next(events) == {"type": "message_stop"}
    assert next(events, None) is None
    for block, text in zip(content, texts, strict=True):
        if block["type"] == "tool_use":
            block["input"] = from_json(text, allow_partial=True) if text else {}
        else:
            block[block["type"]] = text
    return {**answer, **event["delta"], "usage": {**answer["usage"], **event["usage"]}}


def take_delta(block: dict[str, Any], delta: dict[str, str]) -> str:
    """The text of a delta, which has to be of the block's kind."""
    if delta["type"] == "signature_delta":
        block["signature"] = delta["signature"]
        return ""
    assert (block["type"], delta["type"]) in {
        ("text", "text_delta"),
        ("thinking", "thinking_delta"),
        ("tool_use", "input_json_delta"),
    }
    [text] = (value for name, value in delta.items() if name != "type")
    return text
