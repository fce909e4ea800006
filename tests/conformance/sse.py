"""A strict reader of server-sent events: it refuses whatever the server has no reason to send.

Stricter than the specification, which allows other line ends, fields and spacing than the ones this server writes.
"""

import json
from dataclasses import dataclass
from typing import Any

DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Event:
    """`name` is that of its `event:` line, if it has one; `data` the text after `data: `."""

    data: str
    name: str | None = None


def read_events(stream: bytes) -> list[Event]:
    """The events of a complete stream, less its comments."""
    assert b"\r" not in stream, "a line ends in a carriage return"
    assert stream.endswith(b"\n\n"), f"the stream ends in the middle of an event: {stream[-40:]!r}"
    blocks = stream.decode("utf-8").removesuffix("\n\n").split("\n\n")
    return [read_event(block) for block in blocks if not is_comment(block)]


def is_comment(block: str) -> bool:
    return block.startswith(":") and "\n" not in block


def read_event(block: str) -> Event:
    lines = block.split("\n")
    name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
    assert len(lines) == 1, f"expected one line of data, got {lines}"
    assert lines[0].startswith("data: "), f"expected a line of data, got {lines[0]!r}"
    return Event(lines[0].removeprefix("data: "), name)


def read_chunks(stream: bytes) -> list[dict[str, Any]]:
    """The objects of a stream that ends with [DONE] and has no named events."""
    *events, last = read_events(stream)
    assert last == Event(DONE), f"the last event must be {DONE}, got {last}"
    assert all(event.name is None for event in events)
    return [read_json(event.data) for event in events]


def read_named(stream: bytes) -> list[dict[str, Any]]:
    """The objects of a stream whose events are named by their `type`."""
    events = read_events(stream)
    objects = [read_json(event.data) for event in events]
    assert [event.name for event in events] == [found["type"] for found in objects]
    return objects


def read_json(text: str | bytes) -> Any:
    """JSON without NaN, Infinity, and names that occur twice."""
    return json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_twins)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs), f"a name occurs twice in {pairs}"
    return found
