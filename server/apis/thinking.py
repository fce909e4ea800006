"""How many of an answer's tokens the model spent on thinking."""

from collections.abc import Sequence

from orcinus.server.reading.pieces import Piece, Reasoning, ToolCallStart


class ThinkingCount:
    """Counts the tokens that the model spent on thinking, which comes first: those until something else is said.

    Markers count with what they end. An output that has both is divided by the lengths of their texts; otherwise the
    count is exact but for tokens that begin a call, whose name is not known yet.
    """

    def __init__(self) -> None:
        self._num_before_answer = 0
        self._has_thought = False
        self._has_answered = False

    @property
    def num_tokens(self) -> int:
        return self._num_before_answer if self._has_thought else 0

    def add(self, num_tokens: int, pieces: Sequence[Piece]) -> None:
        if self._has_answered:
            return
        num_thought_chars = sum(len(piece.text) for piece in pieces if isinstance(piece, Reasoning))
        self._has_thought |= num_thought_chars > 0
        self._has_answered = any(not isinstance(piece, Reasoning) for piece in pieces)
        if self._has_answered:
            num_chars = sum(len(piece.text) for piece in pieces if not isinstance(piece, ToolCallStart))
            num_tokens = round(num_tokens * num_thought_chars / max(num_chars, 1))
        self._num_before_answer += num_tokens
