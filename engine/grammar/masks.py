"""Sets of tokens as packed bits, and the thread that works on those of grammars, mostly while the model runs.

A mask has one bit for each token, 32 to a word, the lowest first, and room for one token more than the model has: the
end that `engine.grammar.vocabulary` gives to models without one. Knows nothing of grammars.
"""

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Work = Callable[["Matcher"], None]

_WORD_BITS = 32
# A mask takes microseconds, and milliseconds at worst: what goes on for this long has no bound.
_TIMEOUT_S = 1.0


class Matcher(Protocol):
    """The part of `engine.grammar.matcher.GrammarMatcher` that sampling uses, by one thread at a time.

    A mask of None rules nothing out, and what may replace no token now is not asked to. With `overrules` a replacement
    is taken although other parameters rule it out.
    """

    @property
    def mask(self) -> NDArray[np.int32] | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def is_finished(self) -> bool: ...
    @property
    def forced(self) -> list[int]: ...
    @property
    def is_steered(self) -> bool: ...
    @property
    def may_replace(self) -> bool: ...
    @property
    def overrules(self) -> bool: ...
    def fill_mask(self) -> None: ...
    def replacement_for(self, token_id: int) -> int: ...
    def accept(self, token_id: int) -> None: ...
    def take_forced(self) -> None: ...
    def fail(self, reason: str) -> None: ...


def empty_mask(vocab_size: int) -> NDArray[np.int32]:
    """Return a mask without any token, (vocab_size // 32 + 1,)."""
    return np.zeros(vocab_size // _WORD_BITS + 1, dtype=np.int32)


def pack_tokens(token_ids: Iterable[int], vocab_size: int) -> NDArray[np.int32]:
    """Return a mask with the bits of these tokens."""
    bits = np.zeros(len(empty_mask(vocab_size)) * _WORD_BITS, dtype=np.uint8)
    bits[[*token_ids]] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def token_mask(token_id: int, vocab_size: int) -> NDArray[np.int32]:
    """Return a mask with the bit of one token."""
    mask = empty_mask(vocab_size)
    mask.view(np.uint32)[token_id // _WORD_BITS] = 1 << token_id % _WORD_BITS
    return mask


def tokens_in(mask: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the tokens whose bits are set, in order."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def random_token(mask: NDArray[np.int32], rng: random.Random) -> int | None:
    """Return one of the tokens whose bits are set, each as likely as the others; None where there is none.

    Without a list of them all, which takes twenty times as long where most of a large vocabulary is allowed.
    """
    ends = np.bitwise_count(mask.view(np.uint32)).cumsum(dtype=np.int64)
    if not ends[-1]:
        return None
    number = rng.randrange(int(ends[-1]))
    word = int(ends.searchsorted(number, side="right"))
    before = int(ends[word - 1]) if word else 0
    return word * _WORD_BITS + int(tokens_in(mask[word : word + 1])[number - before])


def has_token(mask: NDArray[np.int32], token_id: int) -> bool:
    """Return whether a token's bit is set."""
    return bool(mask[token_id // _WORD_BITS] >> token_id % _WORD_BITS & 1)


class MaskFiller:
    """Works on the matchers of a batch, one after the other, in a thread of its own: fills their masks, or else.

    Used by one thread: `start`, then `wait`.
    """

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._thread: ThreadPoolExecutor | None = None
        self._batch: _Batch | None = None

    def start(self, matchers: Sequence[Matcher], work: Work = lambda matcher: matcher.fill_mask()) -> None:
        """Begin to do some work on each of the matchers."""
        if self._batch is not None and not self._batch.future.done():  # it timed out, or its step failed
            self._abandon(self._batch)
        self._batch = None
        if matchers:
            self._thread = self._thread or ThreadPoolExecutor(1, "mask")
            self._batch = _Batch(matchers, work)
            self._batch.future = self._thread.submit(self._batch.fill)

    def wait(self) -> None:
        """Wait until the work is done. A matcher that takes longer than the timeout fails."""
        while self._batch is not None:
            position = self._batch.position
            done, _ = wait([self._batch.future], self._timeout_s)
            if done:
                self._batch = None
            elif self._batch.position == position:
                self._fail_current(self._batch)

    def _fail_current(self, batch: "_Batch") -> None:
        """Fail the matcher that is being worked on. Its thread stays busy, so the others get a new one."""
        current = batch.position
        batch.matchers[current].fail(f"the grammar is too complex: a step took over {self._timeout_s:g} s")
        self.start(batch.matchers[current + 1 :], batch.work)

    def _abandon(self, batch: "_Batch") -> None:
        assert self._thread is not None
        batch.is_abandoned = True
        self._thread.shutdown(wait=False)
        self._thread = None


class _Batch:
    def __init__(self, matchers: Sequence[Matcher], work: Work) -> None:
        self.matchers = matchers
        self.work = work
        self.position = 0
        self.is_abandoned = False
        self.future: Future[None] = Future()

    def fill(self) -> None:
        for position, matcher in enumerate(self.matchers):
            self.position = position
            try:
                self.work(matcher)
            except BaseException as error:  # a panic of the library's is no Exception, and its mask must not be used
                logger.exception("filling a mask failed")
                matcher.fail(f"the grammar cannot be followed: {type(error).__name__}")
            if self.is_abandoned:
                return
