"""What was measured and whether it is enough: times between tokens, rows with a bound. Pure arithmetic."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orcinus.server.load.report import percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure; with a `limit` it is a target. `foreign_cores` is the CPU that others took meanwhile."""

    name: str
    value: float
    unit: str
    foreign_cores: float
    limit: float | None = None
    bound: Literal["at most", "at least"] = "at most"

    @property
    def holds(self) -> bool | None:
        """None where there is no target."""
        if self.limit is None:
            return None
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit


@dataclass(frozen=True, slots=True)
class Window:
    """A time on the clock of the load, in seconds: after `start_s`, up to and with `end_s`."""

    start_s: float
    end_s: float

    def has(self, time_s: float) -> bool:
        return self.start_s < time_s <= self.end_s


@dataclass(frozen=True, slots=True)
class Latency:
    """Times between two tokens of one stream, over all streams, in ms."""

    p50_ms: float
    p99_ms: float
    max_ms: float


def latency_within(streams: Sequence[Sequence[float]], window: Window) -> Latency:
    """Of the times at which each stream's tokens came; a gap is in the window in which it ends.

    Raises `ValueError` where no gap does.
    """
    gaps_ms = [
        1000 * (later - earlier)
        for times_s in streams
        for earlier, later in itertools.pairwise(times_s)
        if window.has(later)
    ]
    if not gaps_ms:
        raise ValueError(f"no stream has a token from {window.start_s:.1f} to {window.end_s:.1f} s")
    return Latency(statistics.median(gaps_ms), percentile(gaps_ms, 99), max(gaps_ms))


def lengths_within(streams: Sequence[Sequence[float]], prompt_tokens: int, window: Window) -> list[tuple[int, int]]:
    """Of each stream, the tokens that it had before the window, prompt included, and those that came in it."""
    return [
        (
            prompt_tokens + sum(time_s <= window.start_s for time_s in times_s),
            sum(window.has(time_s) for time_s in times_s),
        )
        for times_s in streams
    ]
