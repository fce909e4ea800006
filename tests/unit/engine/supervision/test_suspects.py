"""Which requests are suspected and given up when engines end: the tracker, without engines."""

import random

import pytest

from orcinus.engine.supervision.suspects import SuspectTracker


def tracking(*request_ids: str) -> SuspectTracker:
    """With these in flight, none of them given to an engine yet."""
    tracker = SuspectTracker()
    for request_id in request_ids:
        tracker.add(request_id)
    return tracker


def end_by_fault(tracker: SuspectTracker) -> list[str]:
    """End the engine by a fault, and remove the requests that are found to be the reason."""
    culprits = tracker.on_engine_end(was_killed=False)
    for request_id in culprits:
        tracker.remove(request_id)
    return culprits


def test_while_no_engine_ends_every_request_is_due_at_once_and_once() -> None:
    tracker = tracking("a", "b")
    assert tracker.take_due() == ["a", "b"]
    assert tracker.take_due() == []
    pending = [tracker.has_pending]
    tracker.add("c")
    pending.append(tracker.has_pending)
    assert pending == [False, True]
    assert tracker.take_due() == ["c"]


def test_a_request_that_left_before_it_was_due_is_not_given() -> None:
    tracker = tracking("a", "b")
    tracker.remove("a")
    assert tracker.take_due() == ["b"]


def test_suspects_come_one_at_a_time_and_the_others_after_them() -> None:
    tracker = tracking("a", "b", "queued")
    tracker.take_due()
    tracker.on_started(["a", "b", "unknown"])
    assert tracker.on_engine_end(was_killed=False) == []
    tracker.add("new")
    assert tracker.take_due() == ["a"]
    tracker.on_started(["a"])
    assert tracker.take_due() == []
    tracker.on_progress("a")
    assert tracker.take_due() == ["b"]
    tracker.remove("b")
    assert tracker.take_due() == ["queued", "new"]
    assert tracker.take_due() == []


def test_a_culprit_among_many_is_found_alone() -> None:
    tracker = tracking(*"abcKd")
    tracker.take_due()
    tracker.on_started([*"abcKd"])
    assert end_by_fault(tracker) == []
    for innocent in "abc":
        assert tracker.take_due() == [innocent]
        tracker.on_started([innocent])
        tracker.on_progress(innocent)
    assert tracker.take_due() == ["K"]
    tracker.on_started(["K"])
    assert end_by_fault(tracker) == ["K"]
    passed = []
    while due := tracker.take_due():
        passed += due
        for request_id in due:
            tracker.on_started([request_id])
            tracker.on_progress(request_id)
    assert passed == [*"abcd"]


def run_until_it_ends(tracker: SuspectTracker, *, brings_tokens: bool, was_killed: bool) -> list[str]:
    assert tracker.take_due() == ["a"]
    tracker.on_started(["a"])
    if brings_tokens:
        tracker.on_progress("a")
    return tracker.on_engine_end(was_killed=was_killed)


def test_a_request_that_ends_engines_is_found_the_second_time_whatever_it_had_brought_before_the_first() -> None:
    for brings_tokens in (True, False):
        tracker = tracking("a")
        assert run_until_it_ends(tracker, brings_tokens=brings_tokens, was_killed=False) == []
        assert run_until_it_ends(tracker, brings_tokens=False, was_killed=False) == ["a"]


def test_a_request_that_brings_tokens_anew_is_never_a_culprit() -> None:
    tracker = tracking("a")
    for _ in range(10):
        assert run_until_it_ends(tracker, brings_tokens=True, was_killed=False) == []


def test_engines_killed_from_outside_count_half_and_nothing_for_a_request_that_had_brought_tokens() -> None:
    tracker = tracking("a")
    for brings_tokens in (True, False, False, False, True, True, False, False, False):
        assert run_until_it_ends(tracker, brings_tokens=brings_tokens, was_killed=True) == []
    assert run_until_it_ends(tracker, brings_tokens=False, was_killed=True) == ["a"]


def test_a_fault_and_a_kill_are_not_enough() -> None:
    tracker = tracking("a")
    assert run_until_it_ends(tracker, brings_tokens=False, was_killed=False) == []
    assert run_until_it_ends(tracker, brings_tokens=False, was_killed=True) == []
    assert run_until_it_ends(tracker, brings_tokens=False, was_killed=False) == ["a"]


def test_a_request_that_had_not_begun_is_not_blamed() -> None:
    tracker = tracking("a", "b")
    for _ in range(5):
        tracker.take_due()
        assert tracker.on_engine_end(was_killed=False) == []
    assert tracker.take_due() == ["a", "b"]


def test_a_suspect_whose_turn_did_not_come_stays_one_and_is_not_blamed_again() -> None:
    tracker = tracking("a", "b")
    tracker.take_due()
    tracker.on_started(["a", "b"])
    tracker.on_engine_end(was_killed=False)
    assert tracker.take_due() == ["a"]
    assert tracker.on_engine_end(was_killed=False) == []  # before "a" had begun
    assert tracker.take_due() == ["a"]
    tracker.on_progress("a")
    assert tracker.take_due() == ["b"]


@pytest.mark.parametrize("seed", range(20))
def test_only_culprits_are_found_and_all_of_them(seed: int) -> None:
    """Engines that run up to four at a time, in random order; each culprit ends them in its first step."""
    rng = random.Random(seed)
    ids = [f"{'K' if rng.random() < 0.2 else 'i'}{number}" for number in range(40)]
    tracker = tracking(*ids)
    guilty = {request_id for request_id in ids if request_id.startswith("K")}
    culprits: set[str] = set()
    finished: set[str] = set()
    waiting: list[str] = []
    while len(culprits) + len(finished) < len(ids):
        waiting += tracker.take_due()
        group = rng.sample(waiting, min(len(waiting), rng.randint(1, 4)))
        tracker.on_started(group)
        if guilty.intersection(group):
            culprits |= set(end_by_fault(tracker))
            waiting = []
            continue
        for request_id in group:
            waiting.remove(request_id)
            tracker.on_progress(request_id)
            if rng.random() < 0.7:
                tracker.remove(request_id)
                finished.add(request_id)
            else:
                waiting.append(request_id)
    assert culprits == guilty
