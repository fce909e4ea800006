"""`python -m tests.conformance`: every row against a server of its own, and docs/conformance.md written anew.

Exits with 1 if a row failed, and says why. Words after the command choose rows by their names' beginnings; then
nothing is written.
"""

import sys
from collections.abc import Sequence

from tests.conformance.api import Api
from tests.conformance.contract import all_rows
from tests.conformance.registry import Outcome
from tests.conformance.report import REPORT, run, write
from tests.server_process import ServerProcess


def main(argv: Sequence[str]) -> int:
    rows = [row for row in all_rows() if not argv or row.name.startswith(tuple(argv))]
    server = ServerProcess()
    try:
        with Api(server.url) as api:
            outcomes = [run(row, api) for row in rows]
    finally:
        server.close()
    for outcome in outcomes:
        if outcome.problem:
            print(f"\n{outcome.row.name}: {outcome.row.text}\n{outcome.problem}")
    if not argv:
        write(outcomes)
    return summarize(outcomes, is_written=not argv)


def summarize(outcomes: Sequence[Outcome], *, is_written: bool) -> int:
    failed = [outcome.row.name for outcome in outcomes if outcome.problem]
    where = f", see {REPORT.name}" if is_written else ""
    print(f"{len(outcomes)} rows, {len(outcomes) - len(failed)} passed{where}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
