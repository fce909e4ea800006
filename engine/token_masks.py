"""Sets of tokens as packed bits, and the threads that fill those of grammars while the model runs.

A mask has one bit for each token, 32 to a word, the lowest first, and room for one token more than the model has: the
end that `engine.grammar` gives to models without one. Knows nothing of grammars.
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_WORD_BITS = 32
_NUM_THREADS = 4
# A mask takes microseconds, and milliseconds at worst: what goes on for this long has no bound.
_TIMEOUT_S = 0.5


class Matcher(Protocol):
    """The part of `engine.grammar.GrammarMatcher` that sampling uses, by one thread at a time."""

    mask: NDArray[np.int32]
    error: str | None
    is_finished: bool

    def fill_mask(self) -> None: ...
    def accept(self, token_id: int) -> None: ...
    def give_up(self, reason: str) -> None: ...


def empty_mask(vocab_size: int) -> NDArray[np.int32]:
    return np.zeros(vocab_size // _WORD_BITS + 1, dtype=np.int32)


def pack_tokens(token_ids: Iterable[int], vocab_size: int) -> NDArray[np.int32]:
    """A mask with the bits of these tokens."""
    bits = np.zeros(len(empty_mask(vocab_size)) * _WORD_BITS, dtype=np.uint8)
    bits[[*token_ids]] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def tokens_in(mask: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


class MaskFiller:
    """Fills the masks of a batch. Used by one thread: `start`, then `wait`."""

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._threads: ThreadPoolExecutor | None = None
        self._pending: dict[Future[None], Matcher] = {}

    def start(self, matchers: Sequence[Matcher]) -> None:
        self._pending = {}
        if matchers:
            threads = self._threads = self._threads or ThreadPoolExecutor(_NUM_THREADS, "mask")
            self._pending = {threads.submit(matcher.fill_mask): matcher for matcher in matchers}

    def wait(self) -> None:
        """Until every mask is filled, but not for long: a matcher that takes too long is given up."""
        while self._pending:
            done, late = wait(self._pending, self._timeout_s)
            for future in done:
                if (error := future.exception()) is not None:
                    logger.error("filling a mask failed", exc_info=error)
                    self._pending[future].give_up(f"the grammar cannot be followed: {type(error).__name__}")
            waiting = [self._pending[future] for future in late if future.cancel()]
            for future in late:
                if not future.cancelled():
                    self._pending[future].give_up(f"the grammar is too complex: a step took over {self._timeout_s} s")
            if late:  # some threads stay busy: whoever waited for one of them starts again with new ones
                self._abandon_threads()
            self.start(waiting)

    def _abandon_threads(self) -> None:
        assert self._threads is not None
        self._threads.shutdown(wait=False)
        self._threads = None
