"""Which tokens a grammar allows next, followed once for each request, as packed bits.

The automata are llguidance's; `engine.grammar.compiler` makes them. Knows nothing of logits, batches on a device and
requests' parameters.
"""

import logging
from collections import deque
from collections.abc import Iterable

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from orcinus.engine.grammar.closing import Closing, StartPaths
from orcinus.engine.grammar.masks import empty_mask, pack_tokens, token_mask
from orcinus.engine.grammar.thought import Thought
from orcinus.engine.grammar.vocabulary import Vocabulary
from orcinus.engine.sampling_params import Thinking

logger = logging.getLogger(__name__)

_MOST_FORCED = 256  # tokens that are taken at once; more come with the next one that is sampled
_TOO_SLOW = "the grammar is too complex: it takes too long to find an end of the text"


class GrammarMatcher:
    """Follows one request's tokens. `mask` has a bit for each token that may come next, once `fill_mask` has run;
    it is None where every token may.

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
        self.mask: NDArray[np.int32] | None = None
        self.error: str | None = None
        self.is_finished = False  # nothing can follow
        self.forced: list[int] = []  # what `take_forced` took in last
        self._coming: deque[int] | None = None  # the grammar's next tokens, if it leaves no choice; None: to be found
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
            self.mask = ~self._ends
            return
        if coming := self._find_coming():
            mask = token_mask(coming[0], self._vocab_size)
        else:
            mask = empty_mask(self._vocab_size)
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        if self._ignores_eos and (mask & ~self._ends).any():
            mask &= ~self._ends
        thought = self._thought
        if thought is not None and thought.start is not None and not thought.is_spent:
            mask |= pack_tokens([thought.start], self._vocab_size)
        self.mask = mask
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
                    self._find_coming()
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

    def take_forced(self) -> None:
        """Take in the tokens that come next whatever is sampled, a bounded number, and keep them as `forced`.

        To be called after `accept`. Does what it takes to choose each: the state is that of a request which samples
        them. One that ends the text is left to be sampled: so all others are computed, and later prompts find them
        cached. Never raises: see `error`.
        """
        self.forced = []
        try:
            while len(self.forced) < _MOST_FORCED and self._is_strict and (coming := self._find_coming()):
                token_id = coming[0]
                if len(coming) == 1 and self._stops_after(token_id):
                    break
                self._update_path()
                self.replacement_for(token_id)  # which the mask of this one token would rule out
                self._take_in(token_id)
                self.forced.append(token_id)
        except Exception as error:
            self._fail_over(error)

    def _stops_after(self, token_id: int) -> bool:
        after = self._matcher.deep_copy()
        return bool(after.consume_token(token_id) and after.is_stopped())

    @property
    def _is_strict(self) -> bool:
        """Whether there is a next token, and the grammar alone says which may be that."""
        is_free = self._thought is not None and (self._thought.is_on or self._thought.start is not None)
        has_ended = self.is_finished or (self._closing is not None and self._closing.has_ended)
        return not (is_free or has_ended or self.error is not None)

    def _find_coming(self) -> deque[int]:
        """Return the next tokens, in the model's own spelling, where the text that comes next is a certain one.

        They stay what they are while they are taken one by one: what a token is followed by does not depend on how
        many are taken at once.
        """
        if self._coming is None:
            self._coming = deque(self._matcher.compute_ff_tokens())
        return self._coming

    def _take_in(self, token_id: int) -> None:
        self._count(token_id)
        if self._thought is not None and self._thought.add(token_id):
            return
        self._pass(token_id)
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

    def _pass(self, token_id: int) -> None:
        """Take one of the grammar's tokens off those that were to come."""
        if self._coming and self._coming[0] == token_id:
            self._coming.popleft()
            self._coming = self._coming or None
        else:
            self._coming = None

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
