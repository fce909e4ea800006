"""The plots of loads: latencies and throughput over time of one, throughput and latency over batch sizes of several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orcinus.server.load.drawing import MAIN_COLOR, drawing
from orcinus.server.load.figures import Spread, Summary, knee_of, tokens_over_time
from orcinus.server.load.run import LoadRun

_SECOND_COLOR = "#d9822b"
_NUM_WINDOWS = 60
_NUM_BINS = 60


def plot_run(run: LoadRun, summary: Summary, heading: str, file: Path) -> None:
    """Write the plot to `file`, whose suffix chooses the format."""
    good = [record for record in run.records if record.failure is None]
    with drawing(file, (12, 4), heading) as figure:
        ttft, itl, throughput = figure.subplots(1, 3)
        first_times_ms = [1000 * record.ttft_s for record in good if record.ttft_s is not None]
        _distribution(ttft, first_times_ms, summary.ttft_ms, "time to first token (ms)", "requests")
        gaps_ms = [1000 * gap_s for record in good for gap_s in record.gaps_s]
        _distribution(itl, gaps_ms, summary.itl_ms, "inter-token latency (ms)", "chunks")
        window_s = run.duration_s / _NUM_WINDOWS
        rates = [tokens / window_s for tokens in tokens_over_time(good, window_s)]
        times_s = [window_s * i for i in range(len(rates))]
        throughput.fill_between(times_s, rates, step="post", color=MAIN_COLOR, linewidth=0)
        _label(throughput, "output tokens/s over time", "seconds")


def plot_sweep(points: Sequence[tuple[int, Summary]], heading: str, file: Path) -> tuple[Path, Path]:
    """Write two plots of batch sizes with what each came to; their names are made from that of `file`."""
    throughput_file = file.with_stem(f"{file.stem}-throughput")
    latency_file = file.with_stem(f"{file.stem}-latency")
    sizes = [size for size, _ in points]
    summaries = [summary for _, summary in points]
    with drawing(throughput_file, (7, 4.5), heading) as figure:
        axis = figure.subplots()
        speeds = [summary.output_tokens_per_s for summary in summaries]
        _lines(axis, sizes, {"": speeds}, "output tokens/s")
        if (knee := knee_of(sizes, speeds)) is not None:
            axis.axvline(knee, color=_SECOND_COLOR, linestyle=":", label=f"knee: {knee}")
            axis.legend(fontsize=8, frameon=False)
    with drawing(latency_file, (11, 4.5), heading) as figure:
        ttft, itl = figure.subplots(1, 2)
        _lines(ttft, sizes, _medians_and_tails([summary.ttft_ms for summary in summaries]), "time to first token (ms)")
        _lines(itl, sizes, _medians_and_tails([summary.itl_ms for summary in summaries]), "inter-token latency (ms)")
    return throughput_file, latency_file


def _distribution(axis: Any, values: Sequence[float], spread: Spread | None, title: str, what: str) -> None:
    """A histogram up to the last percent, whose outliers would squeeze the rest; the median and p99 are marked."""
    if spread is not None:
        shown = [value for value in values if value <= spread.p99]
        axis.hist(shown, bins=_NUM_BINS, color=MAIN_COLOR)
        axis.axvline(spread.median, color=_SECOND_COLOR, label=f"median {spread.median:.1f}")
        axis.axvline(spread.p99, color=_SECOND_COLOR, linestyle=":", label=f"p99 {spread.p99:.1f}")
        axis.legend(fontsize=8, frameon=False)
    axis.set_ylabel(what)
    _label(axis, title, "ms")


def _medians_and_tails(spreads: Sequence[Spread | None]) -> dict[str, list[float]]:
    """NaN, which is not drawn, where nothing was measured."""
    return {
        name: [float("nan") if spread is None else getattr(spread, name) for spread in spreads]
        for name in ("median", "p99")
    }


def _lines(axis: Any, sizes: Sequence[int], lines: dict[str, list[float]], title: str) -> None:
    for (name, values), color in zip(lines.items(), (MAIN_COLOR, _SECOND_COLOR), strict=False):
        axis.plot(sizes, values, marker="o", color=color, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    if len(lines) > 1:
        axis.legend(fontsize=8, frameon=False)
    _label(axis, title, "batch size (requests under way)")


def _label(axis: Any, title: str, x_label: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x_label)
    axis.spines[["top", "right"]].set_visible(False)
