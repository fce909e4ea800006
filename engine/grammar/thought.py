"""What a model thinks before it answers, followed token by token, and brought to its end when its budget is used up.

Needs no vocabulary: thoughts are known by the tokens of their tags. Knows nothing of logits and of what follows them.
"""

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from orcinus.engine.grammar.masks import Matcher, has_token, pack_tokens
from orcinus.engine.sampling_params import Thinking


class Thought:
    """Follows the thoughts of one output of at most `max_tokens`.

    All of its state follows from the tokens that were taken, drawn or not: a resumed request gets the same tokens as
    one that was never interrupted, if `add` is called for each of its tokens again.
    """

    def __init__(self, thinking: Thinking, max_tokens: int | None = None) -> None:
        self._thinking = thinking
        self._budget = thinking.budget_within(max_tokens)
        self._openings = thinking.opening_tags
        self._ends = thinking.closing_tags
        self._forced = thinking.forced_tokens
        self._recent: deque[int] = deque(maxlen=max(map(len, (*self._openings, *self._ends))))
        self._num_tokens = 0  # of thoughts, forced ones not counted
        self._num_forced = 0  # of `_forced`, taken one after the other
        self.is_on = not self._openings  # the next token is part of a thought, or of what is forced at its end
        self._may_begin = not self.is_on

    @property
    def is_spent(self) -> bool:
        """Whether the budget is used up."""
        return self._budget is not None and self._num_tokens >= self._budget

    @property
    def is_forced(self) -> bool:
        """Whether the next token is not the model's to choose, unless it is one that ends the thought."""
        return self.is_on and self.is_spent

    @property
    def start(self) -> int | None:
        """The token that, as the next one, would open a thought; None if no single one would."""
        return self._thinking.start if self._may_begin and not self._recent else None

    def takes(self, token_id: int) -> bool:
        """Return whether `add` would find the token to be part of a thought."""
        return self.is_on or (self._may_begin and self._opens((*self._recent, token_id)))

    def add(self, token_id: int) -> bool:
        """Take in the next token. Return whether it is part of a thought, or the last one of its opening."""
        if self.is_on:
            self._think(token_id)
            return True
        if not self._may_begin:
            return False
        self._recent.append(token_id)
        recent = tuple(self._recent)
        if self._opens(recent):
            self._switch(is_on=True)
        elif not self._thinking.recurs:
            self._may_begin = any(opening[: len(recent)] == recent for opening in self._openings)
        return self.is_on

    def replacement_for(self, token_id: int) -> int:
        """Return the token to take where `token_id` was drawn: this one, or the next one of those forced."""
        if not self.is_forced or (self._num_forced == 0 and self._is_ending(token_id)):
            return token_id
        return self._forced[self._num_forced]

    def _opens(self, recent: tuple[int, ...]) -> bool:
        if self._thinking.recurs:
            return _has_end(recent, self._openings)
        return recent in self._openings

    def _think(self, token_id: int) -> None:
        self._recent.append(token_id)
        if self.is_spent and token_id == self._forced[self._num_forced]:
            self._num_forced += 1
            if self._num_forced == len(self._forced):
                self._switch(is_on=False)
            return
        self._num_forced = 0
        self._num_tokens += 1
        if _has_end(tuple(self._recent), self._ends):
            self._switch(is_on=False)

    def _switch(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self._may_begin = not is_on and self._thinking.recurs
        self._num_forced = 0
        self._recent.clear()

    def _is_ending(self, token_id: int) -> bool:
        """Return whether a token goes on with the tag that the model is about to end its thought with."""
        recent = tuple(self._recent)
        begun = [max(n for n in range(len(end)) if n == 0 or recent[-n:] == end[:n]) for end in self._ends]
        furthest = max(begun)
        return any(n == furthest and end[n] == token_id for n, end in zip(begun, self._ends, strict=True))


class ThoughtMatcher:
    """Holds one request's thoughts to their budget, as a `Matcher`: with none inside, or with that of its grammar.

    A grammar inside follows the same tokens, and no token is forced that it does not allow. `tokens` are those that
    were generated already, which the matcher inside knows.
    """

    def __init__(
        self, thought: Thought, vocab_size: int, inside: Matcher | None = None, tokens: Iterable[int] = ()
    ) -> None:
        self._thought = thought
        self._inside = inside
        self._first_mask: NDArray[np.int32] | None = None
        self.forced: list[int] = []
        for token_id in tokens:
            thought.add(token_id)
        if inside is None and thought.is_spent and thought.start is not None:
            self._first_mask = ~pack_tokens([thought.start], vocab_size)  # none is begun

    @property
    def mask(self) -> NDArray[np.int32] | None:
        return self._first_mask if self._inside is None else self._inside.mask

    @property
    def error(self) -> str | None:
        return None if self._inside is None else self._inside.error

    @property
    def is_finished(self) -> bool:
        return self._inside is not None and self._inside.is_finished

    @property
    def is_steered(self) -> bool:
        return self._inside is not None and self._inside.is_steered

    @property
    def may_replace(self) -> bool:
        return self._inside is not None or self._thought.is_forced

    @property
    def overrules(self) -> bool:
        return self._inside is None

    def fill_mask(self) -> None:
        if self._inside is not None:
            self._inside.fill_mask()

    def replacement_for(self, token_id: int) -> int:
        if self._thought.is_forced:
            forced = self._thought.replacement_for(token_id)
            if self.mask is None or has_token(self.mask, forced):
                return forced
        return token_id if self._inside is None else self._inside.replacement_for(token_id)

    def accept(self, token_id: int) -> None:
        self._first_mask = None
        self._thought.add(token_id)
        if self._inside is not None:
            self._inside.accept(token_id)

    def take_forced(self) -> None:
        if self._inside is not None and not self._thought.is_on:
            self._inside.take_forced()
            self.forced = self._inside.forced
            for token_id in self.forced:
                self._thought.add(token_id)
        else:
            self.forced = []

    def fail(self, reason: str) -> None:
        if self._inside is not None:
            self._inside.fail(reason)


def _has_end(recent: tuple[int, ...], sequences: Iterable[tuple[int, ...]]) -> bool:
    return any(recent[-len(sequence) :] == sequence for sequence in sequences)
