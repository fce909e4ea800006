"""The message of a whole choice, written as JSON while it comes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from orcinus.server.apis.json_pieces import JsonText
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart


@dataclass(slots=True)
class _Call:
    """`arguments` is JSON text, as the model wrote it; of a custom tool its input, any text."""

    call_id: str
    name: str
    is_custom: bool = False
    arguments: JsonText = field(default_factory=JsonText)

    def to_dict(self) -> dict[str, Any]:
        if self.is_custom:
            return {"id": self.call_id, "type": "custom", "custom": {"name": self.name, "input": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class WrittenMessage:
    """Holds what the model has said so far."""

    __slots__ = ("_calls", "_content", "_reasoning")

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._content = JsonText()
        self._reasoning = JsonText()

    @property
    def has_calls(self) -> bool:
        return bool(self._calls)

    def add(self, pieces: Iterable[Piece]) -> int:
        """Write pieces, and return about how many bytes they have."""
        num_bytes = 0
        for piece in pieces:
            match piece:
                case Content(text):
                    self._content.add(text)
                case Reasoning(text):
                    self._reasoning.add(text)
                case ToolCallStart(_, call_id, text, is_custom):
                    self._calls.append(_Call(call_id, text, is_custom))
                case ToolCallArguments(index, text):
                    self._calls[index].arguments.add(text)
            num_bytes += len(text)
        return num_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the message, without the fields that few messages have and this one has not."""
        calls = [call.to_dict() for call in self._calls]
        return {
            "role": "assistant",
            "content": None if calls and not self._content else self._content,
            "refusal": None,
            **({"reasoning_content": self._reasoning} if self._reasoning else {}),
            **({"tool_calls": calls} if calls else {}),
        }
