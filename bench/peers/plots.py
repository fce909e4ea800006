"""The plot of a comparison: tokens per second, time to first token and between tokens of every arm, load by load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers.figures import Window, median, of
from bench.peers.report import Comparison
from orcinus.server.load.drawing import drawing

_COLORS = ("#0b6e99", "#d9822b", "#5b8c5a", "#8e6c8a", "#7a7a7a", "#b0b0b0")
_GROUP_WIDTH = 0.8
_PANELS: tuple[tuple[str, Callable[[Window], float | None]], ...] = (
    ("output tokens/s", lambda window: window.tokens_per_s),
    ("time to first token, median (ms)", lambda window: window.ttft_ms),
    ("inter-token latency, p99 (ms)", lambda window: window.itl_p99_ms),
)


def plot_comparison(comparison: Comparison, file: Path) -> None:
    """Write the plot to `file`, whose suffix chooses the format."""
    heading = f"{comparison.heading}\nmedians over rounds; the lines are the lowest and the highest round"
    with drawing(file, (15, 4.5), heading) as figure:
        axes = figure.subplots(1, len(_PANELS))
        for axis, (title, value) in zip(axes, _PANELS, strict=True):
            _bars(axis, comparison, value)
            axis.set_title(title, fontsize=10, loc="left")
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
        )


def _bars(axis: Any, comparison: Comparison, value: Callable[[Window], float | None]) -> None:
    width = _GROUP_WIDTH / len(comparison.arms)
    for number, arm in enumerate(comparison.arms):
        at = [group + number * width for group in range(len(comparison.loads))]
        heights, below, above = zip(*(_bar(comparison, arm, load, value) for load in comparison.loads), strict=True)
        color = _COLORS[number % len(_COLORS)]
        axis.bar(at, heights, width, yerr=(below, above), color=color, ecolor="#333333", label=arm)
    middle = (_GROUP_WIDTH - width) / 2
    axis.set_xticks([group + middle for group in range(len(comparison.loads))], comparison.loads, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _bar(
    comparison: Comparison, arm: str, load: str, value: Callable[[Window], float | None]
) -> tuple[float, float, float]:
    """The height of a bar, and how far its line goes below and above; nothing where nothing was measured."""
    windows = of(comparison.windows, arm, load)
    middle = median(windows, value)
    values = [number for window in windows if (number := value(window)) is not None]
    return (0.0, 0.0, 0.0) if middle is None else (middle, middle - min(values), max(values) - middle)
