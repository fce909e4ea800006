"""What a chat message is made of as it is generated: content, reasoning, and calls of tools, in pieces.

`server.reading.message_reader` makes them of the model's text; each API that has messages writes them in its own shape.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader of the message. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model thought before it answered. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins, of which the name is known. `index` counts the calls of the message from 0.

    `is_custom`: of a custom tool, whose input is a text. `namespace` is that of the tool, if it has one.
    """

    index: int
    call_id: str
    name: str
    is_custom: bool = False
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the JSON text of a call's arguments. Never empty; together they are one JSON object.

    With `is_input` it is the input of a custom tool, all of it, and no JSON.
    """

    index: int
    text: str
    is_input: bool = False


Piece = Content | Reasoning | ToolCallStart | ToolCallArguments


class PieceReader(Protocol):
    """Splits the text of one choice into pieces. It may be cut anywhere; `finish` gives out what was held back.

    With `is_cut`, only what a text that was cut off at a limit allows.
    """

    @property
    def num_tool_calls(self) -> int: ...
    def feed(self, text: str) -> list[Piece]: ...
    def finish(self, *, is_cut: bool = False) -> list[Piece]: ...
