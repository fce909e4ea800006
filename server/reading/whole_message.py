"""A chat message read out of what the engine generates, and put together for answers that are given whole."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from orcinus.engine.outputs import RequestOutput
from orcinus.server.reading.pieces import Content, Piece, PieceReader, Reasoning, ToolCallArguments, ToolCallStart


@dataclass(slots=True)
class ToolCall:
    """`arguments` is JSON text, as the model wrote it; of a custom tool its input, any text."""

    call_id: str
    name: str
    is_custom: bool = False
    arguments: str = ""


@dataclass(slots=True)
class WholeMessage:
    """Holds what the model has said so far."""

    tool_calls: list[ToolCall] = field(default_factory=list)
    _content: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def add(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Content(text):
                    self._content.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case ToolCallStart(_, call_id, name, is_custom):
                    self.tool_calls.append(ToolCall(call_id, name, is_custom))
                case ToolCallArguments(index, text):
                    self.tool_calls[index].arguments += text


def read_pieces(reader: PieceReader | None, output: RequestOutput) -> list[Piece]:
    """Return what an output adds to its message. Without a reader all text is content."""
    if reader is None:
        return [Content(output.text)] if output.text else []
    pieces = reader.feed(output.text)
    if output.finish_reason is None:
        return pieces
    return pieces + reader.finish(is_cut=output.finish_reason == "length")
