"""Requests with tools, and readers fed in parts, for the tests of what models write."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.message_reader import join_pieces
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.reading.tools.request import ToolUse, read_tool_use

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}


def function(name: str, parameters: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **rest}}


WEATHER_AND_TIME = [function("get_weather", WEATHER), function("get_time")]


def tool_use(
    tools: Sequence[dict[str, Any]] = WEATHER_AND_TIME, choice: Any = "auto", *, parallel: bool = True
) -> ToolUse:
    use = read_tool_use(list(tools), choice, parallel)
    assert use is not None
    return use


def detect(template: str, *, special_tokens: Collection[str] = (), **options: str) -> MessageFormat:
    return MessageFormat.detect(template, lambda text: None, special_tokens=special_tokens, **options)


def read_parts(
    message_format: MessageFormat,
    parts: Iterable[str],
    *,
    tail: str = "",
    use: ToolUse | None = None,
    is_cut: bool = False,
) -> list[list[Piece]]:
    """Return what each part gave, and at last what the end did, with ids left out."""
    reader = message_format.reader(tail, use)
    assert reader is not None
    given = [reader.feed(part) for part in parts]
    return [[without_id(piece) for piece in pieces] for pieces in (*given, reader.finish(is_cut=is_cut))]


def read_all(
    message_format: MessageFormat,
    parts: Iterable[str],
    *,
    tail: str = "",
    use: ToolUse | None = None,
    is_cut: bool = False,
) -> list[Piece]:
    given = read_parts(message_format, parts, tail=tail, use=use, is_cut=is_cut)
    return join_pieces([piece for pieces in given for piece in pieces])


def read(template: str, text: str, *, tail: str = "", use: ToolUse | None = None, is_cut: bool = False) -> list[Piece]:
    """Return the pieces of a text, which are the same whether it comes at once or character by character, or in two."""
    use = use or tool_use()
    form = detect(template)
    pieces = read_all(form, [text], tail=tail, use=use, is_cut=is_cut)
    for parts in (text, *([text[:place], text[place:]] for place in range(1, len(text), 1 + len(text) // 60))):
        assert read_all(form, parts, tail=tail, use=use, is_cut=is_cut) == pieces
    return pieces


def cut(text: str, places: Iterable[int]) -> list[str]:
    bounds = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


def call(index: int, name: str, arguments: str) -> list[Piece]:
    return [ToolCallStart(index, "", name), ToolCallArguments(index, arguments)]


def content(text: str) -> list[Piece]:
    return [Content(text)]


def reasoning(text: str) -> list[Piece]:
    return [Reasoning(text)]


def without_id(piece: Piece) -> Piece:
    return replace(piece, call_id="") if isinstance(piece, ToolCallStart) else piece
