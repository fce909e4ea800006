"""The rows of the conformance run: what each checks, and the function that checks it. Knows no server."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.conformance.api import Api

Check = Callable[[Api], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. `check` raises if the server does not do what `text` says."""

    name: str
    text: str
    check: Check


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tells what became of a row; `problem` is empty if it passed."""

    row: Row
    problem: str = ""


ROWS: list[Row] = []


def row(name: str, text: str) -> Callable[[Check], Check]:
    """Registers a check; `name` is `GROUP.WHAT`, and `text` a sentence about the server."""

    def register(check: Check) -> Check:
        assert all(known.name != name for known in ROWS), f"two rows are called {name}"
        ROWS.append(Row(name, text, check))
        return check

    return register
