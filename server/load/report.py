"""What all measurements are reported with: percentiles and tables. It knows of no measurement."""

import statistics
from collections.abc import Sequence

NO_MATPLOTLIB = "the plot needs matplotlib; install it with: pip install 'orcinus[bench]'"


def percentile(values: Sequence[float], percent: int) -> float:
    """Between the two nearest values, in proportion, as numpy and most load generators have it."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """`rows`, of which the first is the head, in Markdown that is readable as it is. Only the first column is text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_table_line(row, widths) for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _table_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        f"{cell:>{width}}" if i else f"{cell:<{width}}"
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(aligned)} |"
