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
    culprits = tracker.on_engine_end(was_killed=False).culprits
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


def run(tracker: SuspectTracker, *begun: str, proven: str = "", was_killed: bool = False) -> list[str]:
    """Let an engine begin with these of those that are due, bring tokens of `proven`, and end; returns who is found."""
    due = tracker.take_due()
    assert {*begun} <= {*due}
    tracker.on_started([*begun])
    for request_id in proven:
        tracker.on_progress(request_id)
    return end_by_kill(tracker) if was_killed else end_by_fault(tracker)


def end_by_kill(tracker: SuspectTracker) -> list[str]:
    culprits = tracker.on_engine_end(was_killed=True).culprits
    for request_id in culprits:
        tracker.remove(request_id)
    return culprits


def all_pass(tracker: SuspectTracker) -> list[list[str]]:
    """Return what one engine is given at a time, each of which brings a token."""
    rounds = []
    while due := tracker.take_due():
        rounds.append(due)
        tracker.on_started(due)
        for request_id in due:
            assert rounds[-1] == [request_id] or not tracker.take_due()
            tracker.on_progress(request_id)
    return rounds


@pytest.mark.parametrize("was_killed", [False, True])
def test_after_the_first_end_all_run_together_again_and_new_ones_with_them(was_killed: bool) -> None:
    tracker = tracking("a", "b", "c", "queued")
    assert run(tracker, "a", "b", "c", proven="a", was_killed=was_killed) == []
    tracker.add("new")
    assert tracker.take_due() == ["a", "b", "c", "queued", "new"]
    assert not tracker.has_pending


def test_those_that_were_there_twice_in_a_row_without_a_token_come_one_at_a_time_and_the_others_after_them() -> None:
    tracker = tracking("a", "b", "c", "queued")
    run(tracker, "a", "b", "c", proven="a")
    run(tracker, "a", "b", "c", proven="c")
    tracker.add("new")
    assert tracker.take_due() == ["b"], "it has never brought a token"
    tracker.on_started(["b"])
    assert tracker.take_due() == []
    assert tracker.has_pending
    tracker.on_progress("b")
    assert tracker.take_due() == ["a"]
    tracker.remove("a")
    assert tracker.take_due() == ["c", "queued", "new"]
    assert tracker.take_due() == []


def test_a_culprit_among_many_is_found_alone_in_the_third_engine() -> None:
    tracker = tracking(*"abcKd")
    assert run(tracker, *"abcKd", proven="ab") == []
    assert run(tracker, *"abcKd") == []
    for innocent in "c":  # it has not brought a token either, and came earlier
        assert tracker.take_due() == [innocent]
        tracker.on_started([innocent])
        tracker.on_progress(innocent)
    assert run(tracker, "K") == ["K"]
    assert all_pass(tracker) == [["a", "b", "c", "d"]], "the culprit explains everything so far"


def test_an_end_that_leaves_fewer_suspects_tells_something_and_one_before_anything_began_does_not() -> None:
    tracker = tracking("a", "b")
    has_new = []
    for begun in (["a", "b"], ["a", "b"], [], ["a"]):
        tracker.take_due()
        tracker.on_started(begun)
        has_new.append(tracker.on_engine_end(was_killed=False).has_new_suspects)
    assert has_new == [False, True, False, False]


def test_a_second_culprit_is_looked_for_as_soon_as_another_engine_ends() -> None:
    tracker = tracking(*"KaLb")
    for _ in range(2):
        assert run(tracker, *"KaLb") == []
    assert run(tracker, "K") == ["K"]
    assert run(tracker, *"aLb", proven="a") == []
    assert tracker.take_due() == ["L"]
    tracker.on_started(["L"])
    assert end_by_fault(tracker) == ["L"]


def test_a_fault_convicts_nobody_while_another_one_is_unproven() -> None:
    tracker = tracking("a", "b")
    for _ in range(3):
        for request_id in tracker.take_due() or ["a"]:
            tracker.on_started([request_id])
        tracker.on_started(["a", "b"])  # whatever order they were given in
        assert tracker.on_engine_end(was_killed=False).culprits == []


def test_a_token_forgets_that_a_kill_met_a_request_alone() -> None:
    tracker = tracking("a")
    for was_proven in (False, False, True, False, False, False):
        assert run(tracker, "a", proven="a" if was_proven else "", was_killed=True) == []
    tracker = tracking("a", "b")
    for _ in range(4):
        assert run(tracker, "a", "b", proven="b", was_killed=True) == [], "nobody else came to have a turn"
        assert tracker.take_due()
        tracker.on_started(["a"])
        tracker.on_progress("a")
        assert end_by_kill(tracker) == []
    for _ in range(3):
        assert run(tracker, "a", "b", was_killed=True) == []
    assert run(tracker, "a", was_killed=True) == []


def test_kills_from_outside_that_meet_a_crowd_convict_nobody() -> None:
    """They isolate from the third on, which meets each request alone at most once before all others had their turn."""
    tracker = tracking(*"abc")
    for _ in range(3):
        assert run(tracker, *"abc", was_killed=True) == []
    for alone in "abc":
        assert run(tracker, alone, was_killed=True) == []
    assert all_pass(tracker) == [["a"], ["b"], ["c"]]


def test_one_that_has_its_engine_killed_is_found_after_the_others_had_their_turn() -> None:
    """As a request that takes more memory than there is has it killed by the kernel."""
    tracker = tracking(*"aKb")
    for _ in range(3):
        assert run(tracker, *"aKb", was_killed=True) == []
    assert tracker.take_due() == ["a"]
    tracker.on_started(["a"])
    tracker.on_progress("a")
    assert run(tracker, "K", was_killed=True) == []
    assert tracker.take_due() == ["b"]
    tracker.on_started(["b"])
    tracker.on_progress("b")
    assert run(tracker, "K", was_killed=True) == ["K"]
    assert all_pass(tracker) == [["a", "b"]]


def run_until_it_ends(tracker: SuspectTracker, *, brings_tokens: bool, was_killed: bool) -> list[str]:
    assert tracker.take_due() == ["a"]
    tracker.on_started(["a"])
    if brings_tokens:
        tracker.on_progress("a")
    return tracker.on_engine_end(was_killed=was_killed).culprits


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
        assert tracker.on_engine_end(was_killed=False).culprits == []
    assert tracker.take_due() == ["a", "b"]


def test_a_suspect_whose_turn_did_not_come_stays_one_and_is_not_blamed_again() -> None:
    tracker = tracking("a", "b")
    run(tracker, "a", "b")
    run(tracker, "a", "b")
    for _ in range(5):
        assert tracker.take_due() == ["a"]
        assert tracker.on_engine_end(was_killed=False).culprits == []  # before "a" had begun
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


@pytest.mark.parametrize("was_killed", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_an_engine_that_ends_with_several_unproven_or_none_convicts_nobody(seed: int, was_killed: bool) -> None:
    """However often it does: whose fault it is cannot be told."""
    rng = random.Random(seed)
    tracker = tracking(*map(str, range(12)))
    for _ in range(100):
        waiting, unproven, proven = set[str](), set[str](), set[str]()
        for _ in range(rng.randint(1, 4)):
            waiting |= {*tracker.take_due()}
            begun = rng.sample(sorted(waiting), min(len(waiting), 4))
            tracker.on_started(begun)
            proven |= {request_id for request_id in begun if rng.random() < 0.6}
            unproven = (unproven | {*begun}) - proven
            for request_id in proven if len(unproven) != 1 else proven | unproven:
                tracker.on_progress(request_id)
            if len(unproven) == 1:
                proven, unproven = proven | unproven, set()
        assert tracker.on_engine_end(was_killed=was_killed).culprits == []


# --- other engines --------------------------------------------------------------------------------------


def test_while_an_engine_is_replaced_all_that_had_brought_tokens_or_had_not_begun_may_go_elsewhere() -> None:
    tracker = tracking("a", "b", "c")
    run(tracker, "a", "b", proven="b")
    assert tracker.free() == ["b", "c"]


def test_after_a_kill_from_outside_all_may_and_after_a_second_one_without_tokens_between_that_one_not() -> None:
    tracker = tracking("a", "b", "c")
    run(tracker, "a", "b", proven="b", was_killed=True)
    assert tracker.free() == ["a", "b", "c"]
    run(tracker, "a", "b", proven="b", was_killed=True)
    assert tracker.free() == ["b", "c"]


def test_what_brings_tokens_in_a_successor_may_go_elsewhere_again() -> None:
    tracker = tracking("a", "b")
    run(tracker, "a", "b")
    run(tracker, "a", "b", proven="a")
    assert tracker.free() == ["a"]


def test_what_a_culprit_explains_may_go_elsewhere_again() -> None:
    tracker = tracking("a", "b")
    run(tracker, "a", "b")
    run(tracker, "a", "b")
    assert tracker.free() == []
    assert run(tracker, "a") == ["a"]
    assert tracker.free() == ["b"]


def test_a_request_that_is_handed_over_is_due_there_once_and_its_strikes_count_on() -> None:
    first, second = tracking("a", "b"), tracking("c")
    run(first, "a", was_killed=True)
    for request_id in first.free():
        first.hand_over(request_id, second)
    assert first.take_due() == first.free() == []
    run(second, "a", "c", was_killed=True)
    assert second.free() == ["c", "b"]


def test_a_request_that_comes_back_before_its_engine_is_replaced_is_due_once() -> None:
    first, second = tracking("a", "b"), tracking()
    run(first, was_killed=True)
    first.hand_over("a", second)
    run(second, was_killed=True)
    second.hand_over("a", first)
    assert sorted(first.take_due()) == ["a", "b"]
    assert second.take_due() == []
