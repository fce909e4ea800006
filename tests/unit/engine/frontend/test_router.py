"""Which engine a request goes to."""

from dataclasses import dataclass
from typing import Any

import pytest

from orcinus.engine.frontend.router import Router
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams


@dataclass
class Replica:
    """The part of `EngineReplica` that load is known from."""

    num_in_flight: int = 0
    num_slots: int = 4
    state: str = "ready"


def chosen(*replicas: Replica, n: int = 1) -> int:
    request = GenerationRequest(request_id="r", prompts=[[1]], sampling=SamplingParams(n=n))
    known: Any = replicas
    return [replica is Router().choose(request, known) for replica in known].index(True)


def test_the_least_loaded_is_chosen_and_the_first_of_several() -> None:
    assert chosen(Replica(3), Replica(1), Replica(2)) == 1
    assert chosen(Replica(2), Replica(1, 4), Replica(1, 4)) == 1


def test_load_is_by_slots_and_with_the_request() -> None:
    assert chosen(Replica(2, num_slots=2), Replica(3, num_slots=8)) == 1
    assert chosen(Replica(0, num_slots=1), Replica(1, num_slots=8), n=4) == 1


def test_an_engine_that_is_being_replaced_is_chosen_only_where_none_is_up() -> None:
    assert chosen(Replica(state="restarting"), Replica(9), Replica(state="loading")) == 1
    assert chosen(Replica(state="dead"), Replica(state="loading", num_slots=0), Replica(5, state="restarting")) == 2


def test_asking_for_one_where_there_is_none_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        chosen(Replica(state="loading"), Replica(state="dead"))
