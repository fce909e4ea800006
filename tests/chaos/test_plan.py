"""The plan of a chaos run comes from its seed alone, and has in it what it says."""

from itertools import islice
from typing import get_args

from tests.chaos.bad_input import BAD_INPUTS, GARBAGE
from tests.chaos.bodies import LONG_KINDS
from tests.chaos.plan import Manner, Plan, make_plan

NUM_ROUNDS = 24


def plan(seed: int = 1) -> Plan:
    return make_plan(seed, num_bodies=64)


def test_a_seed_gives_the_same_plan_again_and_another_seed_another() -> None:
    assert plan().catalogue == plan().catalogue
    assert plan().catalogue != plan(2).catalogue
    assert [*islice(plan().rounds(), 5)] == [*islice(plan().rounds(), 5)]
    assert plan().round(3) == [*islice(plan().rounds(), 4)][3]
    assert plan().round(3) != plan(2).round(3)


def test_every_manner_every_body_and_every_fault_comes_in_time() -> None:
    rounds = [*islice(plan().rounds(), NUM_ROUNDS)]
    requests = [request for planned in rounds for request in planned.requests]
    assert {request.manner for request in requests} == set(get_args(Manner))
    bad = {request.target for request in requests if request.manner == "bad"}
    garbage = {request.target for request in requests if request.manner == "garbage"}
    good = {request.target for request in requests if request.manner not in ("bad", "garbage")}
    assert bad == set(range(len(BAD_INPUTS)))
    assert garbage == set(range(len(GARBAGE)))
    assert good == set(range(64))
    for some in (rounds[::2], rounds[1::2]):  # those whose counters are exact, and those where clients leave
        assert {fault.kind for planned in some for fault in planned.faults} == {"kill", "freeze", "pause"}
    assert {request.key for request in requests} == {0, 1}


def test_nobody_leaves_in_every_other_round() -> None:
    impatient = {"leave stream", "leave whole", "deadline", "deadline header"}
    for planned in islice(plan().rounds(), NUM_ROUNDS):
        has_leavers = any(request.manner in impatient for request in planned.requests)
        assert has_leavers == (planned.number % 2 == 1)


def test_who_leaves_has_asked_for_one_long_answer() -> None:
    given = plan()
    for planned in islice(given.rounds(), NUM_ROUNDS):
        for request in planned.requests:
            if request.patience:
                assert given.catalogue[request.target].kind in LONG_KINDS
                assert given.catalogue[request.target].num_sequences == 1


def test_faults_come_before_the_last_answers_and_one_after_the_other() -> None:
    for planned in islice(plan().rounds(), NUM_ROUNDS):
        moments = [fault.after for fault in planned.faults]
        num_asked = sum(map(len, planned.clients))
        assert moments == sorted(set(moments))
        assert all(moment < num_asked for moment in moments)
        assert all(burst.after < num_asked for burst in planned.bursts)


def test_the_first_round_has_no_faults_and_all_can_be_left_out() -> None:
    assert not plan().round(0).faults
    calm = make_plan(1, num_bodies=64, has_faults=False)
    assert not any(planned.faults for planned in islice(calm.rounds(), NUM_ROUNDS))


def test_requests_of_a_round_are_numbered_apart() -> None:
    for planned in islice(plan().rounds(), NUM_ROUNDS):
        numbers = [request.number for request in planned.requests]
        assert len(numbers) == len(set(numbers))
