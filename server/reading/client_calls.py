"""Calls of functions, given back as calls of the client's tools that they stand for.

A model is told of functions alone. A client may have called one of them otherwise: a custom tool, whose input is a
text, or a tool in a namespace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic_core import from_json

from orcinus.server.reading.pieces import Piece, PieceReader, ToolCallArguments, ToolCallStart

INPUT = "input"  # the one argument of a function that stands for a custom tool


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool by the name that the client has for it."""

    name: str
    is_custom: bool
    namespace: str | None = None


class ClientCallReader:
    """Reads as another reader does. The input of a custom tool comes in one piece, once it is complete."""

    def __init__(self, reader: PieceReader, tools: Mapping[str, ClientTool]) -> None:
        self._reader = reader
        self._tools = tools
        self._input: list[str] | None = None  # of the custom tool that is being called, as JSON
        self._index = 0  # of that call

    @property
    def num_tool_calls(self) -> int:
        return self._reader.num_tool_calls

    def feed(self, text: str) -> list[Piece]:
        return self._translate(self._reader.feed(text))

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        return [*self._translate(self._reader.finish(is_cut=is_cut)), *self._end_input()]

    def _translate(self, pieces: Sequence[Piece]) -> list[Piece]:
        translated: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, ToolCallArguments) and self._input is not None:
                self._input.append(piece.text)
                continue
            translated += self._end_input()
            translated.append(self._start(piece) if isinstance(piece, ToolCallStart) else piece)
        return translated

    def _start(self, call: ToolCallStart) -> ToolCallStart:
        tool = self._tools.get(call.name)
        if tool is None:
            return call
        self._index, self._input = call.index, [] if tool.is_custom else None
        return ToolCallStart(call.index, call.call_id, tool.name, tool.is_custom, tool.namespace)

    def _end_input(self) -> list[Piece]:
        if self._input is None:
            return []
        text, self._input = read_input("".join(self._input)), None
        return [ToolCallArguments(self._index, text, is_input=True)] if text else []


def read_input(arguments: str) -> str:
    """Return the text in the arguments of a function that stands for a custom tool, as far as there is one."""
    try:
        values = from_json(arguments or "{}", allow_partial="trailing-strings")
    except ValueError:
        return arguments
    text = values.get(INPUT, "") if isinstance(values, dict) else None
    return text if isinstance(text, str) else arguments
