"""What was measured, and what it adds up to over the rounds: medians and ratios. Pure; times are in milliseconds."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from orcinus.server.load.figures import Summary
from orcinus.server.load.run import LoadRun

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One load on one arm in one round. `missing_tokens` were asked for and did not come."""

    arm: str
    load: str
    round: int
    tokens_per_s: float
    ttft_ms: float
    itl_p50_ms: float | None
    itl_p99_ms: float | None
    itl_max_ms: float | None
    num_failed: int
    missing_tokens: int
    bandwidth_gb_per_s: float
    arm_cores: float
    foreign_cores: float
    ceiling_tokens_per_s: float
    ttft_p99_ms: float | None = None
    e2e_p50_ms: float | None = None
    goodput: float | None = None  # the share of requests within all objectives

    @property
    def share_of_ceiling(self) -> float:
        return self.tokens_per_s / self.ceiling_tokens_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of an arm, and the most memory that it had until it was stopped."""

    arm: str
    startup_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Tells what a window was measured in."""

    arm: str
    load: str
    round: int
    bandwidth_gb_per_s: float
    arm_cores: float
    foreign_cores: float
    ceiling_tokens_per_s: float


def window_of(run: LoadRun, summary: Summary, around: Surroundings) -> Window:
    gaps_s = [gap_s for record in run.records for gap_s in record.gaps_s]
    assert summary.ttft_ms is not None
    return Window(
        arm=around.arm,
        load=around.load,
        round=around.round,
        tokens_per_s=summary.output_tokens_per_s,
        ttft_ms=summary.ttft_ms.median,
        itl_p50_ms=None if summary.itl_ms is None else summary.itl_ms.median,
        itl_p99_ms=None if summary.itl_ms is None else summary.itl_ms.p99,
        itl_max_ms=1000 * max(gaps_s) if gaps_s else None,
        num_failed=summary.num_failed,
        missing_tokens=summary.asked_output_tokens - summary.output_tokens,
        bandwidth_gb_per_s=around.bandwidth_gb_per_s,
        arm_cores=around.arm_cores,
        foreign_cores=around.foreign_cores,
        ceiling_tokens_per_s=around.ceiling_tokens_per_s,
        ttft_p99_ms=summary.ttft_ms.p99,
        e2e_p50_ms=None if summary.e2el_ms is None else summary.e2el_ms.median,
        goodput=None if summary.goodput is None else summary.goodput.share,
    )


def rotated(arms: Sequence[_T], by: int) -> list[_T]:
    """Another one is the first in every round, so that none has the best place in all."""
    start = by % len(arms)
    return [*arms[start:], *arms[:start]]


def of(windows: Sequence[Window], arm: str, load: str) -> list[Window]:
    return [window for window in windows if (window.arm, window.load) == (arm, load)]


def median(windows: Sequence[Window], figure: Callable[[Window], float | None]) -> float | None:
    """Over the rounds that have the figure; None if none has."""
    values = [value for window in windows if (value := figure(window)) is not None]
    return statistics.median(values) if values else None


def ratios(windows: Sequence[Window], arm: str, peer: str, load: str) -> list[float]:
    """Tokens a second of `arm` over those of `peer`, each in the same round, in the order of the rounds."""
    of_peer = {window.round: window.tokens_per_s for window in of(windows, peer, load)}
    of_arm = {window.round: window.tokens_per_s for window in of(windows, arm, load)}
    return [of_arm[number] / of_peer[number] for number in sorted(of_arm.keys() & of_peer.keys())]
