"""The table of targets, in Markdown and as plain data. Pure."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.targets.figures import Row
from orcinus.server.load.report import markdown_table

_NONE = "–"
_BUSY_CORES = 0.1
_HOLDS = {True: "yes", False: "**no**", None: _NONE}
_DIGITS = {"x": 2, "s": 2}


def format_targets(heading: str, facts: Sequence[str], rows: Sequence[Row]) -> str:
    head = ["what", "value", "target", "holds", "others' CPU"]
    parts = [f"# {heading}", "\n".join(f"- {fact}" for fact in facts), markdown_table([head, *map(_cells, rows)])]
    if busy := [row for row in rows if row.foreign_cores > _BUSY_CORES]:
        parts.append(
            f"**The machine was not quiet**: others took more than {_BUSY_CORES:g} cores beside {len(busy)} of "
            f"{len(rows)} figures, {max(row.foreign_cores for row in busy):.2f} at most."
        )
    return "\n\n".join(parts) + "\n"


def as_data(heading: str, facts: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    return {"heading": heading, "facts": [*facts], "rows": [{**asdict(row), "holds": row.holds} for row in rows]}


def _cells(row: Row) -> list[str]:
    target = _NONE if row.limit is None else f"{row.bound} {_quantity(row.limit, row.unit)}"
    return [row.name, _quantity(row.value, row.unit), target, _HOLDS[row.holds], f"{row.foreign_cores:.2f}"]


def _quantity(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.{_DIGITS.get(unit, 1)}f}{'' if unit == 'x' else ' '}{unit}"
