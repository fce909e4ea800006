"""Which part of a request a place in its prompt belongs to: instructions, tools, or a message.

A template may write anything, so that parts are found by the texts in them, in the order of the conversation. What is
not found is taken for the part before it. Knows nothing of tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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


def place_at(text: str, end: int, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Place:
    """Return the part that the text before `end` ends in. The text goes on a little, so that beginnings are found."""
    num_leading = next((i for i, message in enumerate(messages) if not _instructs(message)), len(messages))
    begun: list[tuple[int, Place]] = [(0, Place("system"))]  # a template may have words of its own
    begun += _find_instructions(text, messages[:num_leading])
    begun += _find_tools(text, tools)
    behind = max(start for start, _ in begun)
    begun += _find_turns(text, messages, num_leading, behind)
    return max((entry for entry in begun if entry[0] < max(end, 1)), key=lambda entry: entry[0])[1]


def _find_instructions(text: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Place]]:
    position = 0
    for index, message in enumerate(messages):
        mark = _mark(_text_of(message.get("content")))
        start = text.find(mark, position) if mark else -1
        if start >= 0:
            position = start + len(mark)
            yield start, Place("system", index, str(message.get("role")))


def _find_tools(text: str, tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Place]]:
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
            position = start + len(name)
            yield line or start, Place("tools", tool=name)


def _find_turns(
    text: str, messages: Sequence[Mapping[str, Any]], first: int, position: int
) -> Iterator[tuple[int, Place]]:
    num_not_found = 0
    for index, message in enumerate(messages[first:], first):
        found = [(start, mark) for mark in _marks_of(message) if (start := text.find(mark, position)) >= 0]
        num_not_found = 0 if found else num_not_found + 1
        if num_not_found > _MOST_NOT_FOUND:
            return
        if found:
            start, mark = min(found)
            whole = _text_of(message.get("content")).strip()
            position = start + (len(whole) if text.startswith(whole, start) else len(mark))
            yield start, Place("history", index, str(message.get("role")))


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
