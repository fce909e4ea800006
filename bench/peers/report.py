"""The report of a comparison in Markdown: medians over rounds, ratios within a round, what they ran on. Pure."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.peers.figures import Start, Window, median, of, ratios
from orcinus.server.load.report import markdown_table

_NONE = "–"
_BUSY_CORES = 0.1
_COLUMNS = ["output tok/s", "lowest", "highest", "TTFT", "ITL p50", "ITL p99", "ITL max"]
_OPEN_COLUMNS = ["output tok/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "e2e p50", "goodput"]
_OPEN_AROUND = ["its CPU", "others' CPU"]
_AROUND = ["ceiling", "share of it", "bandwidth", "its CPU", "others' CPU"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that was measured. The first arm is compared with the others; `facts` are lines for the top.

    In `open_loads` requests came at times of their own: what counts there is how long they waited.
    """

    heading: str
    facts: Sequence[str]
    arms: Sequence[str]
    loads: Sequence[str]
    windows: Sequence[Window]
    starts: Sequence[Start]
    open_loads: Sequence[str] = ()

    @property
    def closed_loads(self) -> list[str]:
        return [load for load in self.loads if load not in self.open_loads]


def format_report(comparison: Comparison) -> str:
    sections = [f"# {comparison.heading}", "\n".join(f"- {fact}" for fact in comparison.facts), _EXPLANATION]
    for load in comparison.loads:
        table = _open_table if load in comparison.open_loads else _load_table
        sections += [f"## {load.capitalize()}", table(comparison, load)]
    if len(comparison.arms) > 1 and comparison.closed_loads:
        sections += [f"## {comparison.arms[0]} over the others", _ratio_table(comparison)]
    sections += ["## Start", _start_table(comparison)]
    return "\n\n".join([*sections, *_notes(comparison)]) + "\n"


_EXPLANATION = """\
Medians over the rounds, with the lowest and the highest for tokens per second. TTFT is the median over requests, from
sending; ITL the time between two chunks of one answer, over all requests; both in ms. The ceiling is what reading the
weights in 16 bits and the cache would allow at the bandwidth (GB/s) that was measured just before, with nothing
computed and no prompt read; an arm with weights or a cache of fewer bits reads less and may come above it. CPU is in
cores: what the arm took of them, its client not included, and what neither of the two took. The most memory is that of
all processes of an arm together, what they share counted once. Where requests arrive one by one, at a mean rate, all
figures are medians over the rounds; e2e is the time from sending a request to the end of its answer, in ms, and goodput
the share of requests within all objectives."""


def _load_table(comparison: Comparison, load: str) -> str:
    rows = [_load_row(arm, of(comparison.windows, arm, load)) for arm in comparison.arms]
    return markdown_table([["arm", *_COLUMNS, *_AROUND], *rows])


def _load_row(arm: str, windows: Sequence[Window]) -> list[str]:
    speeds = [window.tokens_per_s for window in windows]
    return [
        arm,
        _number(median(windows, lambda w: w.tokens_per_s)),
        _number(min(speeds, default=None)),
        _number(max(speeds, default=None)),
        _number(median(windows, lambda w: w.ttft_ms)),
        _number(median(windows, lambda w: w.itl_p50_ms)),
        _number(median(windows, lambda w: w.itl_p99_ms)),
        _number(median(windows, lambda w: w.itl_max_ms)),
        _number(median(windows, lambda w: w.ceiling_tokens_per_s)),
        _share(median(windows, lambda w: w.share_of_ceiling)),
        _number(median(windows, lambda w: w.bandwidth_gb_per_s)),
        _number(median(windows, lambda w: w.arm_cores), digits=2),
        _number(median(windows, lambda w: w.foreign_cores), digits=2),
    ]


def _open_table(comparison: Comparison, load: str) -> str:
    rows = [_open_row(arm, of(comparison.windows, arm, load)) for arm in comparison.arms]
    return markdown_table([["arm", *_OPEN_COLUMNS, *_OPEN_AROUND], *rows])


def _open_row(arm: str, windows: Sequence[Window]) -> list[str]:
    return [
        arm,
        _number(median(windows, lambda w: w.tokens_per_s)),
        _number(median(windows, lambda w: w.ttft_ms)),
        _number(median(windows, lambda w: w.ttft_p99_ms)),
        _number(median(windows, lambda w: w.itl_p50_ms)),
        _number(median(windows, lambda w: w.itl_p99_ms)),
        _number(median(windows, lambda w: w.e2e_p50_ms)),
        _number(median(windows, lambda w: w.goodput), digits=2),
        _number(median(windows, lambda w: w.arm_cores), digits=2),
        _number(median(windows, lambda w: w.foreign_cores), digits=2),
    ]


def _ratio_table(comparison: Comparison) -> str:
    first, *peers = comparison.arms
    loads = comparison.closed_loads
    rows = [[f"over {peer}", *(_ratio(comparison, first, peer, load) for load in loads)] for peer in peers]
    return markdown_table([["output tok/s", *loads], *rows])


def _ratio(comparison: Comparison, arm: str, peer: str, load: str) -> str:
    values = ratios(comparison.windows, arm, peer, load)
    if not values:
        return _NONE
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}x{spread}"


def _start_table(comparison: Comparison) -> str:
    rows = [_start_row(arm, [start for start in comparison.starts if start.arm == arm]) for arm in comparison.arms]
    return markdown_table([["arm", "starts", "time to ready, s", "most memory, GB"], *rows])


def _start_row(arm: str, starts: Sequence[Start]) -> list[str]:
    if not starts:
        return [arm, "0", _NONE, _NONE]
    seconds = statistics.median(start.startup_s for start in starts)
    peak_gb = statistics.median(start.peak_bytes for start in starts) / 1e9
    return [arm, str(len(starts)), f"{seconds:.1f}", f"{peak_gb:.1f}"]


def _notes(comparison: Comparison) -> Iterator[str]:
    """Return what makes the numbers less than they seem."""
    windows = comparison.windows
    busy = [window for window in windows if window.foreign_cores > _BUSY_CORES]
    if busy:
        yield (
            f"**The machine was not quiet**: in {len(busy)} of {len(windows)} windows others took more than "
            f"{_BUSY_CORES:g} cores, {max(window.foreign_cores for window in busy):.2f} at most."
        )
    for arm in comparison.arms:
        failed = sum(window.num_failed for window in windows if window.arm == arm)
        missing = sum(window.missing_tokens for window in windows if window.arm == arm)
        if failed or missing:
            yield f"**{arm}**: {failed} requests failed, {missing} tokens that were asked for did not come."


def _number(value: float | None, digits: int = 1) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"
