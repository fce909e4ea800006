"""Which tokens a grammar allows next, followed once for each request, as packed bits.

The automata are llguidance's; `engine.grammar.compiler` makes them. Knows nothing of logits, batches on a device and
requests' parameters.
"""

import logging
from collections.abc import Iterable

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from orcinus.engine.grammar.closing import Closing, StartPaths
from orcinus.engine.grammar.masks import empty_mask, pack_tokens
from orcinus.engine.grammar.thought import Thought
from orcinus.engine.grammar.vocabulary import Vocabulary
from orcinus.engine.sampling_params import Thinking

logger = logging.getLogger(__name__)

_TOO_SLOW = "the grammar is too complex: it takes too long to find an end of the text"


class GrammarMatcher:
    """Follows one request's tokens. `mask` has a bit for each token that may come next, once `fill_mask` has run.

    With `max_tokens` it brings the text to an end within them, where that can be done (`engine.grammar.closing`). The
    `thinking` before the text is held to its budget. Used by one thread at a time. If it cannot go on, `error` says
    why, and everything else is meaningless.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        start_paths: StartPaths,
        thinking: Thinking | None = None,
        *,
        ignore_eos: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        self.mask: NDArray[np.int32] = empty_mask(vocabulary.size)
        self.error: str | None = None
        self.is_finished = False  # nothing can follow
        self.allows_all = False  # `mask` means nothing: every token may come
        self._matcher = matcher
        self._closing = (
            None if max_tokens is None else Closing(vocabulary.path_finder, vocabulary.end_ids, max_tokens, start_paths)
        )
        self._vocab_size = vocabulary.size
        self._ends = pack_tokens(vocabulary.end_ids, vocabulary.size)
        self._ignores_eos = ignore_eos
        self._thought = None if thinking is None else Thought(thinking, max_tokens)

    def fill_mask(self) -> None:
        """Fill `mask` for the next token. A token that ends the text is allowed only where the text may end."""
        if self._is_thinking:
            self.mask[:] = ~self._ends
            return
        self._matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)
        self._check()
        if self._ignores_eos and (self.mask & ~self._ends).any():
            self.mask &= ~self._ends
        thought = self._thought
        if thought is not None and thought.start is not None and not thought.is_spent:
            self.mask |= pack_tokens([thought.start], self._vocab_size)
        self._update_path()

    def replacement_for(self, token_id: int) -> int:
        """Return the token to take where `token_id` was drawn: another if the text could not end in time after it, or
        if the thought before it has used up its budget.

        Never raises: see `error`.
        """
        if self._thought is not None and self._thought.is_on:
            return self._thought.replacement_for(token_id)
        if self._closing is None or self._is_free(token_id) or self.error is not None:
            return token_id
        try:
            return self._closing.replacement_for(self._matcher, token_id)
        except TimeoutError:
            self.fail(_TOO_SLOW)
        except Exception as error:
            self._fail_over(error)
        return token_id

    def replay(self, token_ids: Iterable[int]) -> None:
        """Take in tokens that an earlier matcher of the same request has taken in. Never raises: see `error`."""
        try:
            for token_id in token_ids:
                if not self._is_thinking:
                    self._update_path()
                self._take_in(token_id)
        except Exception as error:
            self._fail_over(error)

    def accept(self, token_id: int) -> None:
        """Take in the token that was chosen. Never raises: see `error`. The step is that of many requests."""
        try:
            self._take_in(token_id)
        except Exception as error:
            self._fail_over(error)

    def _take_in(self, token_id: int) -> None:
        self._count(token_id)
        if self._thought is not None and self._thought.add(token_id):
            return
        self._matcher.consume_token(token_id)
        self._check()
        self.is_finished = self.error is None and self._matcher.is_stopped()

    @property
    def may_replace(self) -> bool:
        """Whether another token than the one drawn may be taken now."""
        return True

    @property
    def overrules(self) -> bool:
        """Whether a replacement is taken although other parameters rule it out: the end of a thought is."""
        return self._is_thinking

    @property
    def is_steered(self) -> bool:
        """Whether a token was taken that had not been drawn."""
        return self._closing is not None and self._closing.is_steered

    def fail(self, reason: str) -> None:
        """Set `error`, unless there is one."""
        self.error = self.error or reason

    def _fail_over(self, error: Exception) -> None:
        logger.error("following a request's tokens failed", exc_info=error)
        self.fail(f"the grammar cannot be followed: {type(error).__name__}")

    def _is_free(self, token_id: int) -> bool:
        """Return whether the token is not the grammar's: part of the thinking before it."""
        return self._thought is not None and self._thought.takes(token_id)

    @property
    def _is_thinking(self) -> bool:
        return self._thought is not None and self._thought.is_on

    def _update_path(self) -> None:
        if self._closing is None or self.error is not None:
            return
        try:
            self._closing.update_path(self._matcher)
        except TimeoutError:
            self.fail(_TOO_SLOW)

    def _count(self, token_id: int) -> None:
        if self._closing is None or self.error is not None:
            return
        if self._is_free(token_id):
            self._closing.count_free_token()
            return
        try:
            self._closing.accept(self._matcher, token_id)
        except TimeoutError:
            self.fail(_TOO_SLOW)

    def _check(self) -> None:
        if self._matcher.is_error():
            self.fail(f"the grammar cannot be followed: {one_line(self._matcher.get_error())}")


def one_line(error: str) -> str:
    """Return an error of llguidance's as one line, without the state that may follow it."""
    if "NoExtension" in error:
        return "no text matches it"
    return " ".join(error.replace("<non-verbose/>", "").split())[:300]
