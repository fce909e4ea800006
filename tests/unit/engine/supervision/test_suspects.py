"""Which requests are suspected and given up when engines end: the rules, without engines."""

import random

import pytest

from orcinus.engine.supervision.suspects import Probation


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
