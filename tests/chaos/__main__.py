"""`python -m tests.chaos --minutes 10 --seed 1`: a run with its table; exits with 1 if the accounts are not even."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.plan import make_plan
from tests.chaos.report import HEADER, row, summary
from tests.chaos.run import RoundReport, Terms, run_plan

_NUM_BODIES = 96


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Chaos on a real server.")
    parser.add_argument("--minutes", type=float, default=10.0, help="rounds begin for so long (default: 10)")
    parser.add_argument("--rounds", type=int, default=None, help="so many rounds instead")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same plan (default: 1)")
    parser.add_argument("--no-faults", action="store_true", help="let the engine live")
    parser.add_argument("--probe-limit-s", type=float, default=1.0, help="the slowest answer of /health (default: 1)")
    parser.add_argument(
        "--deterministic", action="store_true", help="serve so in bfloat16, and allow no difference in any bit"
    )
    parser.add_argument("--log", type=Path, default=None, help="where to write what the server logged", metavar="FILE")
    given = parser.parse_args(argv)
    plan = make_plan(given.seed, num_bodies=_NUM_BODIES, has_faults=not given.no_faults)
    print(f"seed {given.seed}, {len(plan.catalogue)} bodies\n\n{HEADER}", flush=True)
    report = run_plan(plan, Terms(given.rounds, given.minutes, given.probe_limit_s, given.deterministic), _tell)
    print(summary(report), flush=True)
    if given.log is not None:
        given.log.write_text(report.log)
    for problem in report.problems:
        print(f"VIOLATION {problem}", file=sys.stderr)
    return 1 if report.problems else 0


def _tell(done: RoundReport) -> None:
    print(row(done), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
