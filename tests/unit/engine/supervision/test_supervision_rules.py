"""Whom to suspect, when an engine is stuck, and how often it is replaced: the rules, without engines."""

import random

import pytest

from orcinus.engine.messages import Alive, StepOutputs, StepStats
from orcinus.engine.supervision.liveness import Backoff, SupervisionLimits, Vigil
from orcinus.engine.supervision.suspects import Probation

STEP = StepOutputs(deltas=[], stats=StepStats())


def probation(*request_ids: str) -> Probation:
    """With these in flight, none of them given to an engine yet."""
    rules = Probation()
    for request_id in request_ids:
        rules.add(request_id)
    return rules


def convict(rules: Probation) -> list[str]:
    """The engine ends by a fault; those whom that convicts leave."""
    convicted = rules.bury(was_killed=False)
    for request_id in convicted:
        rules.remove(request_id)
    return convicted


# --- probation ------------------------------------------------------------------------------------------


def test_without_a_death_everybody_is_given_at_once_and_once() -> None:
    rules = probation("a", "b")
    assert rules.due() == ["a", "b"]
    assert rules.due() == []
    held_back = [rules.holds_back]
    rules.add("c")
    held_back.append(rules.holds_back)
    assert held_back == [False, True]
    assert rules.due() == ["c"]


def test_whoever_left_before_it_was_due_is_not_given() -> None:
    rules = probation("a", "b")
    rules.remove("a")
    assert rules.due() == ["b"]


def test_suspects_come_one_at_a_time_and_the_others_after_them() -> None:
    rules = probation("a", "b", "queued")
    rules.due()
    rules.begin(["a", "b", "unknown"])
    assert rules.bury(was_killed=False) == []
    rules.add("new")
    assert rules.due() == ["a"]
    rules.begin(["a"])
    assert rules.due() == []
    rules.progress("a")
    assert rules.due() == ["b"]
    rules.remove("b")
    assert rules.due() == ["queued", "new"]
    assert rules.due() == []


def test_a_killer_among_many_is_convicted_alone() -> None:
    rules = probation(*"abcKd")
    rules.due()
    rules.begin([*"abcKd"])
    assert convict(rules) == []
    for innocent in "abc":
        assert rules.due() == [innocent]
        rules.begin([innocent])
        rules.progress(innocent)
    assert rules.due() == ["K"]
    rules.begin(["K"])
    assert convict(rules) == ["K"]
    passed = []
    while due := rules.due():
        passed += due
        for request_id in due:
            rules.begin([request_id])
            rules.progress(request_id)
    assert passed == [*"abcd"]


def run_until_it_ends(rules: Probation, *, brings_something: bool, was_killed: bool) -> list[str]:
    assert rules.due() == ["a"]
    rules.begin(["a"])
    if brings_something:
        rules.progress("a")
    return rules.bury(was_killed=was_killed)


def test_who_ends_engines_is_convicted_the_second_time_whatever_it_had_brought_before_the_first() -> None:
    for brings_something in (True, False):
        rules = probation("a")
        assert run_until_it_ends(rules, brings_something=brings_something, was_killed=False) == []
        assert run_until_it_ends(rules, brings_something=False, was_killed=False) == ["a"]


def test_who_brings_something_anew_is_not_convicted() -> None:
    rules = probation("a")
    for _ in range(10):
        assert run_until_it_ends(rules, brings_something=True, was_killed=False) == []


def test_engines_that_were_killed_from_outside_count_half_and_nothing_for_who_had_brought_something() -> None:
    rules = probation("a")
    for brings_something in (True, False, False, False, True, True, False, False, False):
        assert run_until_it_ends(rules, brings_something=brings_something, was_killed=True) == []
    assert run_until_it_ends(rules, brings_something=False, was_killed=True) == ["a"]


def test_a_fault_and_a_kill_are_not_enough() -> None:
    rules = probation("a")
    assert run_until_it_ends(rules, brings_something=False, was_killed=False) == []
    assert run_until_it_ends(rules, brings_something=False, was_killed=True) == []
    assert run_until_it_ends(rules, brings_something=False, was_killed=False) == ["a"]


def test_who_had_not_begun_is_not_blamed() -> None:
    rules = probation("a", "b")
    for _ in range(5):
        rules.due()
        assert rules.bury(was_killed=False) == []
    assert rules.due() == ["a", "b"]


def test_a_suspect_whose_turn_did_not_come_stays_one_and_is_not_blamed_again() -> None:
    rules = probation("a", "b")
    rules.due()
    rules.begin(["a", "b"])
    rules.bury(was_killed=False)
    assert rules.due() == ["a"]
    assert rules.bury(was_killed=False) == []  # before a had begun
    assert rules.due() == ["a"]
    rules.progress("a")
    assert rules.due() == ["b"]


@pytest.mark.parametrize("seed", range(20))
def test_only_killers_are_convicted_and_all_of_them(seed: int) -> None:
    """Engines that run up to four at a time, in random order; whoever is a killer ends them in its first step."""
    rng = random.Random(seed)
    ids = [f"{'K' if rng.random() < 0.2 else 'i'}{number}" for number in range(40)]
    rules = probation(*ids)
    killers = {request_id for request_id in ids if request_id.startswith("K")}
    convicted: set[str] = set()
    finished: set[str] = set()
    waiting: list[str] = []
    while len(convicted) + len(finished) < len(ids):
        waiting += rules.due()
        group = rng.sample(waiting, min(len(waiting), rng.randint(1, 4)))
        rules.begin(group)
        if killers.intersection(group):
            convicted |= set(convict(rules))
            waiting = []
            continue
        for request_id in group:
            waiting.remove(request_id)
            rules.progress(request_id)
            if rng.random() < 0.7:
                rules.remove(request_id)
                finished.add(request_id)
            else:
                waiting.append(request_id)
    assert convicted == killers


# --- the vigil ------------------------------------------------------------------------------------------


def vigil(**limits: float) -> Vigil:
    watch = Vigil(SupervisionLimits(**limits), is_first=True)  # type: ignore[arg-type]
    watch.loaded()
    return watch


def complaint_of(watch: Vigil) -> str:
    return watch.complaint or ""


def test_silence_beyond_the_limit_is_complained_of() -> None:
    watch = vigil(silence_s=3)
    for _ in range(3):
        watch.tick()
    assert not complaint_of(watch)
    watch.tick()
    assert complaint_of(watch) == "it gave no sign of life for 3 s"
    assert watch.is_silent


@pytest.mark.parametrize("message", [Alive(), STEP])
def test_any_message_is_a_sign_of_life(message: Alive | StepOutputs) -> None:
    watch = vigil(silence_s=3)
    for _ in range(10):
        watch.tick()
        watch.tick()
        watch.hear(message)
    assert not complaint_of(watch)


def test_a_step_beyond_its_limit_is_complained_of() -> None:
    watch = vigil(step_timeout_s=5)
    watch.hear(Alive(stalled_s=4))
    assert not complaint_of(watch)
    watch.hear(Alive(stalled_s=5))
    assert "5 s (step_timeout_s)" in complaint_of(watch)
    assert not watch.is_silent


def test_without_a_limit_a_step_may_take_for_ever() -> None:
    watch = vigil(step_timeout_s=0)
    watch.hear(Alive(stalled_s=1e6))
    assert not complaint_of(watch)


def test_the_first_engine_may_load_in_silence_and_later_ones_for_longer_than_they_may_run() -> None:
    first = Vigil(SupervisionLimits(), is_first=True)
    later = Vigil(SupervisionLimits(silence_s=2, loading_silence_s=5), is_first=False)
    for _ in range(5):
        first.tick()
        later.tick()
    assert not complaint_of(later)
    later.tick()
    assert complaint_of(later)
    for _ in range(1000):
        first.tick()
    assert not complaint_of(first)
    first.loaded()
    first.tick()
    assert not complaint_of(first)


# --- the next engine ------------------------------------------------------------------------------------


def test_engines_that_end_without_use_are_replaced_ever_later_and_at_last_not_at_all() -> None:
    backoff = Backoff(9)
    delays = [backoff.next_delay_s(was_useful=False) for _ in range(10)]
    assert delays == [0, 1, 2, 4, 8, 16, 30, 30, 30, None]


def test_an_engine_that_was_of_use_is_replaced_at_once_however_often() -> None:
    backoff = Backoff(1)
    assert [backoff.next_delay_s(was_useful=True) for _ in range(20)] == [0.0] * 20
    assert backoff.next_delay_s(was_useful=False) == 0
    assert backoff.next_delay_s(was_useful=False) is None


def test_with_no_restarts_the_first_death_is_the_last() -> None:
    assert Backoff(0).next_delay_s(was_useful=True) is None
