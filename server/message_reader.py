"""PLACEHOLDER, to be overwritten by its owner."""

from collections.abc import Callable

from engine.sampling_params import Grammar, Thinking
from server.pieces import Piece
from server.tools.request import ToolUse


class MessageReader:
    num_tool_calls = 0

    def feed(self, text: str) -> list[Piece]:
        return []

    def finish(self) -> list[Piece]:
        return []


class MessageFormat:
    needs_special_tokens = False

    @classmethod
    def detect(
        cls,
        template_source: str,
        added_token_id: Callable[[str], int | None],
        *,
        tool_call_parser: str = "auto",
        reasoning_parser: str = "auto",
    ) -> "MessageFormat":
        return cls()

    def check(self, tool_use: ToolUse) -> None: ...

    def reader(self, prompt_tail: str, tool_use: ToolUse | None) -> MessageReader | None:
        return None

    def grammar(self, prompt_tail: str, tool_use: ToolUse) -> Grammar | None:
        return None

    def thinking(self, prompt_tail: str) -> Thinking | None:
        return None
