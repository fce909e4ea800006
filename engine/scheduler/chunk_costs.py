"""How much longer a step takes for a chunk of prompts of some size, learnt from the latest chunks of each size.

A chunk may cost something however small it is (on a GPU, where a step of decodes alone is replayed as a graph), and its
first tokens may be nearly free (on a CPU, where they come with the weights). So no token costs what another one does:
sizes are kept apart, each power of two with its latest chunks. Knows nothing of decodes, requests, policy or clocks.
"""

import itertools
import statistics
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property

# The median of so many: one that something foreign held up changes nothing, and what lasts is known two chunks later.
_NUM_LATEST = 3
# A size that none of so many chunks had is forgotten: what it took then was beside other decodes.
_MAX_AGE = 32
# Sizes that differ by a smaller factor do not tell what any chunk costs from what its tokens do.
_APART = 1.5
# A chunk is at most so many times larger than any seen: beyond that nothing is known.
_GROWTH = 2


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens in a step, and how much longer it took for them."""

    num_tokens: float
    seconds: float


@dataclass(slots=True)
class _Size:
    """The latest chunks of about one size."""

    chunks: deque[Chunk] = field(default_factory=lambda: deque(maxlen=_NUM_LATEST))
    last_seen: int = 0


class ChunkCosts:
    """Models the time that a chunk adds to a step as straight lines between the sizes that were seen."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}  # by size, the one that was seen last at the end
        self._num_chunks = 0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Learn what a chunk took beyond the decodes beside it."""
        self.__dict__.pop("_points", None)
        self.__dict__.pop("_lines", None)
        self._num_chunks += 1
        key = num_tokens.bit_length()
        size = self._sizes.pop(key, None) or _Size()
        size.chunks.append(Chunk(num_tokens, max(0.0, seconds)))
        size.last_seen = self._num_chunks
        self._sizes[key] = size
        self._sizes = {key: size for key, size in self._sizes.items() if size.last_seen > self._num_chunks - _MAX_AGE}

    @property
    def token_s(self) -> float:
        """The time that one more token takes, over all sizes; 0 where nothing is known."""
        if not self._points:
            return 0.0
        smallest, largest = self._points[0], self._points[-1]
        if not self._is_fixed_cost_known:
            return largest.seconds / largest.num_tokens
        return (largest.seconds - smallest.seconds) / (largest.num_tokens - smallest.num_tokens)

    @property
    def fixed_s(self) -> float:
        """The time that a chunk takes whatever its size; 0 where it cannot be told from that of its tokens."""
        if not self._is_fixed_cost_known:
            return 0.0
        return max(0.0, self._points[0].seconds - self._points[0].num_tokens * self.token_s)

    @property
    def _is_fixed_cost_known(self) -> bool:
        return bool(self._points) and self._points[-1].num_tokens >= _APART * self._points[0].num_tokens

    @property
    def amortising_tokens(self) -> int:
        """Return the size from which on a chunk's tokens take longer than what it costs whatever its size.

        At most twice the largest that was seen. 0 where it is not known that a chunk costs anything besides.
        """
        if self.token_s == 0.0:
            return 0
        return int(min(_GROWTH * self._points[-1].num_tokens, self.fixed_s / self.token_s))

    @property
    def telling_tokens(self) -> int:
        """Return the size of a chunk that would tell what chunks cost whatever their size; 0 where that is known."""
        if not self._points or self._is_fixed_cost_known:
            return 0
        return int(_GROWTH * self._points[-1].num_tokens)

    def tokens_in(self, seconds: float) -> int:
        """Return how many prompt tokens take so much more time, as far as that is known."""
        if not self._points:
            return 0
        most = _GROWTH * self._points[-1].num_tokens
        start, end = self._line_at(seconds)
        if end.seconds <= start.seconds:  # no token costs anything
            return int(most)
        slope = (end.num_tokens - start.num_tokens) / (end.seconds - start.seconds)
        return int(min(most, start.num_tokens + (seconds - start.seconds) * slope))

    @property
    def most_tokens(self) -> int:
        """Return about the largest size that was seen lately; 0 where nothing is known."""
        return int(self._points[-1].num_tokens) if self._points else 0

    def seconds_for(self, num_tokens: int) -> float:
        """Return how much longer a step takes for so many tokens, as far as that is known; 0 where nothing is."""
        if not self._points:
            return 0.0
        start, end = next((line for line in self._lines if num_tokens <= line[1].num_tokens), self._lines[-1])
        slope = (end.seconds - start.seconds) / (end.num_tokens - start.num_tokens)
        return max(0.0, start.seconds + (num_tokens - start.num_tokens) * slope)

    def _line_at(self, seconds: float) -> tuple[Chunk, Chunk]:
        """Return the ends of the line that says what takes so long."""
        return next((line for line in self._lines if seconds <= line[1].seconds), self._lines[-1])

    @cached_property
    def _lines(self) -> list[tuple[Chunk, Chunk]]:
        """The ends of the lines between the sizes; of a single size, from nothing to that."""
        points = self._points if len(self._points) > 1 else [Chunk(0, 0.0), *self._points]
        return list(itertools.pairwise(points))

    @cached_property
    def _points(self) -> list[Chunk]:
        """The medians of the sizes, such that larger chunks take longer.

        Where two sizes contradict each other, the one that was seen later counts: the machine is another by now.
        """
        points: list[Chunk] = []
        for size in reversed(self._sizes.values()):
            point = _median(size.chunks)
            if not any(_contradict(point, other) for other in points):
                points.append(point)
        return sorted(points, key=lambda point: point.num_tokens)


def _contradict(chunk: Chunk, other: Chunk) -> bool:
    """Return whether the larger one of two took less time; of one size only one can count."""
    small, large = sorted((chunk, other), key=lambda either: either.num_tokens)
    return large.num_tokens == small.num_tokens or large.seconds < small.seconds


def _median(chunks: deque[Chunk]) -> Chunk:
    return Chunk(
        statistics.median(chunk.num_tokens for chunk in chunks), statistics.median(chunk.seconds for chunk in chunks)
    )
