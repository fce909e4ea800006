"""How many of an answer's tokens the model spent on thinking."""

from collections.abc import Callable, Sequence

from orcinus.server.context import ServingContext
from orcinus.server.reading.pieces import Piece, Reasoning, ToolCallStart


def thinking_count(ctx: ServingContext) -> "ThinkingCount":
    """Return a count for one choice of the served model."""
    token_bytes = ctx.engine.tokenizer.token_bytes
    return ThinkingCount(ctx.marks_before_answer, lambda token_id: not token_bytes(token_id).strip())


class ThinkingCount:
    """Counts the tokens that the model spent on thinking, which comes first: those until something else is said.

    Markers count with what they end, forced or not, and so does the space after them. `marks` are the tokens that,
    found in this order, lie between a thought and the answer; `is_space` says what may follow them. An output that has
    a thought and an answer is divided there, and where they are not known by the lengths of the texts. The count is
    exact otherwise but for tokens that begin a call, whose name is not known yet.
    """

    def __init__(self, marks: Sequence[int] = (), is_space: Callable[[int], bool] = lambda token_id: False) -> None:
        self._num_before_answer = 0
        self._has_thought = False
        self._has_answered = False
        self._marks_ahead = list(marks)
        self._has_marks = bool(marks)
        self._is_space = is_space

    @property
    def num_tokens(self) -> int:
        return self._num_before_answer if self._has_thought else 0

    def add(self, token_ids: Sequence[int], pieces: Sequence[Piece]) -> None:
        if self._has_answered:
            return
        num_thought_chars = sum(len(piece.text) for piece in pieces if isinstance(piece, Reasoning))
        self._has_answered = any(not isinstance(piece, Reasoning) for piece in pieces)
        num_thought = self._num_up_to_answer(token_ids)
        self._has_thought |= num_thought_chars > 0 or num_thought is not None
        if num_thought is not None:
            self._has_answered |= num_thought < len(token_ids)
        elif self._has_answered:
            num_chars = sum(len(piece.text) for piece in pieces if not isinstance(piece, ToolCallStart))
            num_thought = round(len(token_ids) * num_thought_chars / max(num_chars, 1))
        else:
            num_thought = len(token_ids)
        self._num_before_answer += num_thought

    def _num_up_to_answer(self, token_ids: Sequence[int]) -> int | None:
        """Return how many of the tokens come before the answer, by the marks; None if not all of them were found."""
        position = 0
        while self._marks_ahead and position < len(token_ids):
            if token_ids[position] == self._marks_ahead[0]:
                del self._marks_ahead[0]
            position += 1
        if self._marks_ahead or not self._has_marks:
            return None
        while position < len(token_ids) and self._is_space(token_ids[position]):
            position += 1
        return position
