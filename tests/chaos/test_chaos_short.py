"""The chaos run in its short form: kills, a freeze and a drain on a real server, and accounts that come out even."""

from collections.abc import Sequence

import pytest

from tests.chaos.accounting import PREEMPTIONS, RESUMED
from tests.chaos.bodies import NUM_KINDS
from tests.chaos.plan import Fault, Plan, Round, make_plan
from tests.chaos.report import row, summary
from tests.chaos.run import RoundReport, Terms, run_plan

pytestmark = pytest.mark.slow

NUM_ROUNDS = 4
PROBE_LIMIT_S = 5.0  # of a machine that runs other things, too


def tell(done: RoundReport) -> None:
    print(row(done))


@pytest.mark.timeout(900)  # on a machine that is busy
@pytest.mark.parametrize("is_deterministic", [False, True], ids=["float32", "deterministic-bfloat16"])
def test_clients_see_nothing_of_kills_freezes_and_bursts_and_nothing_is_lost(
    is_deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # on all cores, as a server runs
    plan = make_plan(20, num_bodies=NUM_KINDS, per_client=3)
    report = run_plan(
        plan, Terms(NUM_ROUNDS, minutes=0, probe_limit_s=PROBE_LIMIT_S, is_deterministic=is_deterministic), tell
    )
    print(summary(report))
    assert not report.problems, "\n".join([*report.problems, report.log[-5000:]])
    assert report.exit_code == 0
    assert has_frozen(plan, NUM_ROUNDS)
    assert sum(done.deaths for done in report.rounds) >= 3
    assert sum(done.is_exact for done in report.rounds) == NUM_ROUNDS / 2
    assert report.kinds.keys() >= {"complete", "refused", "left", "bad"}
    assert len(report.complete) >= NUM_KINDS - 3  # all of one kind may have met a full queue
    assert sum(done.grown[RESUMED] for done in report.rounds) > 0
    assert sum(done.grown[PREEMPTIONS] for done in report.rounds) > 0


def has_frozen(plan: Plan, num_rounds: int) -> bool:
    rounds: Sequence[Round] = [plan.round(number) for number in range(num_rounds)]
    faults: list[Fault] = [fault for planned in rounds for fault in planned.faults]
    return any(fault.kind == "freeze" for fault in faults)
