"""The plot of `orcinus bench strategies`: throughput and latency, and how full the slots were over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orcinus.server.commands.strategies.runs import RunResult, Timeline
from orcinus.server.commands.strategies.table import Row
from orcinus.server.load.drawing import MAIN_COLOR, drawing

_COLORS = {
    "continuous": MAIN_COLOR,
    "static": "#d9822b",
    "interleaved": "#7a7a7a",
    "sequential": "#b0b0b0",
    "padded": "#b5462d",
    "padded-sorted": "#c9683f",
    "instances": "#5a7d3a",
}


def plot_strategies(rows: Sequence[Row], timelines: Mapping[str, Timeline], heading: str, file: Path) -> None:
    """Write the plot to `file`, whose suffix chooses the format."""
    runs = [row.run for row in rows]
    with drawing(file, (12, 1.8 + 1.5 * len(runs)), heading) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=[1, 1.7])
        speed, latency = left.subplots(2, 1)
        _bars(speed, runs, [run.output_tokens_per_s for run in runs], "output tokens/s", "{:.0f}")
        _bars(latency, runs, [run.mean_ttft_s for run in runs], "mean time to first token (s)", "{:.2f}")
        until_s = 1.1 * _second_fastest(runs)
        axes = right.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
        for axis, run in zip(axes, runs, strict=True):
            _occupancy(axis, run, timelines[run.strategy], max(run.num_slots for run in runs), until_s)
        axes[-1].set_xlabel("seconds since the load began (last round)")


def _second_fastest(runs: Sequence[RunResult]) -> float:
    """Return the time that the plot shows: strategies without batching would squeeze the others."""
    return sorted(run.elapsed_s for run in runs)[:2][-1]


def _bars(axis: Any, runs: Sequence[RunResult], values: Sequence[float], title: str, label: str) -> None:
    names = [run.strategy for run in runs]
    bars = axis.barh(names, values, color=[_COLORS[name] for name in names])
    axis.bar_label(bars, labels=[label.format(value) for value in values], padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10, loc="left")
    axis.margins(x=0.18)
    axis.spines[["top", "right"]].set_visible(False)


def _occupancy(axis: Any, run: RunResult, timeline: Timeline, num_slots: int, until_s: float) -> None:
    times = [*timeline.times_s, timeline.end_s]
    busy = [*timeline.busy_slots, 0]
    axis.fill_between(times, busy, step="post", color=_COLORS[run.strategy], linewidth=0)
    axis.set_xlim(0, until_s)
    axis.set_ylim(0, num_slots)
    axis.set_yticks([0, num_slots // 2, num_slots])
    axis.set_ylabel("slots")
    title = f"{run.strategy}: slots that compute answers, {run.idle:.0%} idle"
    longer = f" (goes on until {run.elapsed_s:.0f} s)" if run.elapsed_s > until_s else ""
    axis.set_title(title + longer, fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
