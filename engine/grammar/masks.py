"""Sets of tokens as packed bits, and the thread that fills those of grammars while the model runs.

A mask has one bit for each token, 32 to a word, the lowest first, and room for one token more than the model has: the
end that `engine.grammar.vocabulary` gives to models without one. Knows nothing of grammars.
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_WORD_BITS = 32
# A mask takes microseconds, and milliseconds at worst: what goes on for this long has no bound.
_TIMEOUT_S = 1.0


class Matcher(Protocol):
    """The part of `engine.grammar.matcher.GrammarMatcher` that sampling uses, by one thread at a time."""

    mask: NDArray[np.int32]
    allows_all: bool  # and `mask` means nothing
    error: str | None
    is_finished: bool

    @property
    def is_steered(self) -> bool: ...
    def fill_mask(self) -> None: ...
    def replacement_for(self, token_id: int) -> int: ...
    def accept(self, token_id: int) -> None: ...
    def fail(self, reason: str) -> None: ...


def empty_mask(vocab_size: int) -> NDArray[np.int32]:
    """Return a mask without any token, (vocab_size // 32 + 1,)."""
    return np.zeros(vocab_size // _WORD_BITS + 1, dtype=np.int32)


def pack_tokens(token_ids: Iterable[int], vocab_size: int) -> NDArray[np.int32]:
    """Return a mask with the bits of these tokens."""
    bits = np.zeros(len(empty_mask(vocab_size)) * _WORD_BITS, dtype=np.uint8)
    bits[[*token_ids]] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def tokens_in(mask: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the tokens whose bits are set, in order."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def has_token(mask: NDArray[np.int32], token_id: int) -> bool:
    """Return whether a token's bit is set."""
    return bool(mask[token_id // _WORD_BITS] >> token_id % _WORD_BITS & 1)


class MaskFiller:
    """Fills the masks of a batch, one after the other, in a thread of its own.

    Used by one thread: `start`, then `wait`.
    """

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._thread: ThreadPoolExecutor | None = None
        self._batch: _Batch | None = None

    def start(self, matchers: Sequence[Matcher]) -> None:
        if self._batch is not None and not self._batch.future.done():  # it timed out, or its step failed
            self._abandon(self._batch)
        self._batch = None
        if matchers:
            self._thread = self._thread or ThreadPoolExecutor(1, "mask")
            self._batch = _Batch(matchers)
            self._batch.future = self._thread.submit(self._batch.fill)

    def wait(self) -> None:
        """Wait until every mask is filled. A matcher that takes longer than the timeout fails."""
        while self._batch is not None:
            position = self._batch.position
            done, _ = wait([self._batch.future], self._timeout_s)
            if done:
                self._batch = None
            elif self._batch.position == position:
                self._fail_current(self._batch)

    def _fail_current(self, batch: "_Batch") -> None:
        """Fail the matcher whose mask is being filled. Its thread stays busy, so the others get a new one."""
        current = batch.position
        batch.matchers[current].fail(f"the grammar is too complex: a step took over {self._timeout_s:g} s")
        self.start(batch.matchers[current + 1 :])

    def _abandon(self, batch: "_Batch") -> None:
        assert self._thread is not None
        batch.is_abandoned = True
        self._thread.shutdown(wait=False)
        self._thread = None


class _Batch:
    def __init__(self, matchers: Sequence[Matcher]) -> None:
        self.matchers = matchers
        self.position = 0
        self.is_abandoned = False
        self.future: Future[None] = Future()

    def fill(self) -> None:
        for position, matcher in enumerate(self.matchers):
            self.position = position
            try:
                matcher.fill_mask()
            except BaseException as error:  # a panic of the library's is no Exception, and its mask must not be used
                logger.exception("filling a mask failed")
                matcher.fail(f"the grammar cannot be followed: {type(error).__name__}")
            if self.is_abandoned:
                return
