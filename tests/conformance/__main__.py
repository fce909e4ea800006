"""`python -m tests.conformance`: every row against a server of its own, and docs/conformance.md written anew.

Exits with 1 if a row failed, and says why. Words after the command choose rows by their names' beginnings; then
nothing is written.
"""

import argparse
import sys
from collections.abc import Sequence

from tests.conformance.api import Api
from tests.conformance.contract import all_rows
from tests.conformance.registry import Outcome
from tests.conformance.report import REPORT, run, write
from tests.server_process import ServerProcess


def main(argv: Sequence[str]) -> int:
    chosen = parse(argv)
    rows = [row for row in all_rows() if not chosen or row.name.startswith(chosen)]
    server = ServerProcess()
    try:
        with Api(server.url) as api:
            outcomes = [run(row, api) for row in rows]
    finally:
        server.close()
    for outcome in outcomes:
        if outcome.problem:
            print(f"\n{outcome.row.name}: {outcome.row.text}\n{outcome.problem}")
    if not chosen:
        write(outcomes)
    return summarize(outcomes, is_written=not chosen)


def parse(argv: Sequence[str]) -> tuple[str, ...]:
    """The beginnings of names. Exits over help, which needs no server, and over beginnings that no row has."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="The contract on a real server.")
    parser.add_argument("rows", nargs="*", help="the rows whose names begin so (default: all, and the page is written)")
    chosen = tuple(parser.parse_args(argv).rows)
    for beginning in chosen:
        if not any(row.name.startswith(beginning) for row in all_rows()):
            parser.error(f"no row begins with {beginning!r}")
    return chosen


def summarize(outcomes: Sequence[Outcome], *, is_written: bool) -> int:
    failed = [outcome.row.name for outcome in outcomes if outcome.problem]
    where = f", see {REPORT.name}" if is_written else ""
    print(f"{len(outcomes)} rows, {len(outcomes) - len(failed)} passed{where}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
