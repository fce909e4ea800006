"""Draws with matplotlib, which is imported only here and only when something is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAIN_COLOR = "#0b6e99"


@contextmanager
def drawing(file: Path, size: tuple[float, float], heading: str) -> Iterator[Any]:
    """Give a figure of `size` in inches to draw in, written to `file`, whose suffix chooses the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=size, layout="constrained")
    yield figure
    figure.suptitle(heading, fontsize=8)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
