"""Which part of a request a place in its prompt belongs to: instructions, tools, or a message.

A template may write anything, so that parts are found by the texts in them, in the order of the conversation. What is
not found is taken for the part before it. Knows nothing of tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Part = Literal["system", "tools", "history"]

_MARK_CHARS = 48  # of a text, by which it is found
_MOST_NOT_FOUND = 3  # messages in a row, after which no more is looked for
_INSTRUCTING = ("system", "developer")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class Place:
    """Names a part of a request. `message` counts those of the chat from 0, instructions and results included."""

    part: Part
    message: int | None = None
    role: str | None = None
    tool: str | None = None

    def to_dict(self) -> dict[str, Any]:
        told = {"part": self.part, "message": self.message, "role": self.role, "tool": self.tool}
        return {name: value for name, value in told.items() if value is not None}


class _Found(NamedTuple):
    start: int
    end: int  # where what is known of its text ends: the next part begins behind it
    place: Place


def place_at(text: str, end: int, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Place:
    """Return the part that the text before `end` ends in. The text goes on a little, so that beginnings are found."""
    num_leading = next((i for i, message in enumerate(messages) if not _instructs(message)), len(messages))
    begun = [_Found(0, 0, Place("system"))]  # a template may have words of its own
    begun += _find_instructions(text, messages[:num_leading])
    begun += _find_tools(text, tools)
    behind = max(found.end for found in begun)
    begun += _find_turns(text, messages, num_leading, behind)
    return max((found for found in begun if found.start < max(end, 1)), key=lambda found: found.start).place


def _find_instructions(text: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[_Found]:
    position = 0
    for index, message in enumerate(messages):
        whole = _text_of(message.get("content")).strip()
        mark = _mark(whole)
        start = text.find(mark, position) if mark else -1
        if start >= 0:
            position = start + _num_common(text, start, whole)
            yield _Found(start, position, Place("system", index, str(message.get("role"))))


def _find_tools(text: str, tools: Sequence[Mapping[str, Any]]) -> Iterator[_Found]:
    position = 0
    for tool in tools:
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            continue
        found = [
            start for form in (f'"name": "{name}"', f'"name":"{name}"') if (start := text.find(form, position)) >= 0
        ]
        start = min(found) if found else text.find(name, position)
        if start >= 0:
            line = text.rfind("\n", position, start) + 1  # on which the tool begins, where it has one of its own
            position = max(start + len(name), *_ends_of_json(text, start, tool))
            yield _Found(line or start, position, Place("tools", tool=name))


def _ends_of_json(text: str, name_start: int, tool: Mapping[str, Any]) -> Iterator[int]:
    """Yield how far the text goes on like the tool as JSON, as most templates write it, with its `type` and without."""
    for value in (tool, tool["function"]):
        whole = json.dumps(value, ensure_ascii=False)
        start = name_start - whole.find(f'"name": "{tool["function"]["name"]}"')
        yield start + _num_common(text, start, whole) if 0 <= start <= name_start else 0


def _find_turns(text: str, messages: Sequence[Mapping[str, Any]], first: int, position: int) -> Iterator[_Found]:
    num_not_found = 0
    for index, message in enumerate(messages[first:], first):
        found = [(start, mark) for mark in _marks_of(message) if (start := text.find(mark, position)) >= 0]
        num_not_found = 0 if found else num_not_found + 1
        if num_not_found > _MOST_NOT_FOUND:
            return
        if found:
            start, mark = min(found)
            whole = _text_of(message.get("content")).strip()
            position = start + max(len(mark), _num_common(text, start, whole))
            yield _Found(start, position, Place("history", index, str(message.get("role"))))


def _num_common(text: str, start: int, whole: str) -> int:
    """Return how many characters of `whole` stand in the text from `start` on, which may end within it."""
    low, high = 0, min(len(whole), len(text) - start)
    while low < high:
        middle = (low + high + 1) // 2
        if text.startswith(whole[low:middle], start + low):
            low = middle
        else:
            high = middle - 1
    return low


def _marks_of(message: Mapping[str, Any]) -> list[str]:
    """Return the beginnings of all that a template may show of a message."""
    calls = message.get("tool_calls")
    names = [_name_of(call) for call in calls] if isinstance(calls, list) else []
    texts = [_text_of(message.get("content")), *(_text_of(message.get(key)) for key in _THOUGHTS), *names[:1]]
    return [*filter(None, map(_mark, texts))]


def _name_of(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""


def _instructs(message: Mapping[str, Any]) -> bool:
    return message.get("role") in _INSTRUCTING


def _mark(text: str) -> str:
    return text.strip()[:_MARK_CHARS].rstrip()


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))
