"""What a chat message is made of as it is generated: content, reasoning, and calls of tools, in pieces.

`server.reading.message_reader` makes them of the model's text; each API that has messages writes them in its own shape.
"""

from dataclasses import dataclass


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
    """A call begins, of which the name is known. `index` counts the calls of the message from 0."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the JSON text of a call's arguments. Never empty; together they are one JSON object."""

    index: int
    text: str


Piece = Content | Reasoning | ToolCallStart | ToolCallArguments
