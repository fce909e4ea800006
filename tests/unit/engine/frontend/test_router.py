"""Which engine a request goes to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from orcinus.engine.frontend.prefix_index import PrefixIndex
from orcinus.engine.frontend.router import Router

SCOPE = (None, None)
PROMPT = list(range(100))


@dataclass
class Replica:
    """The part of `EngineReplica` that load and what is cached are known from."""

    num_in_flight: int = 0
    num_slots: int = 4
    state: str = "ready"
    cached: Sequence[int] = ()  # of prompts like PROMPT: how many tokens
    prefixes: PrefixIndex = field(default_factory=lambda: PrefixIndex(10, 64))

    def __post_init__(self) -> None:
        for num_tokens in self.cached:
            self.prefixes.add(PROMPT[:num_tokens], SCOPE)


def chosen(*replicas: Replica, n: int = 1, prompts: Sequence[Sequence[int]] = (PROMPT,), scope: Any = SCOPE) -> int:
    known: Any = replicas
    choice = Router().choose(prompts, scope, len(prompts) * n, known)
    return [replica is choice for replica in known].index(True)


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


def test_of_idle_engines_the_one_that_was_sent_least_is_chosen() -> None:
    replicas: Any = [Replica(), Replica(), Replica()]
    prompts = [[number] * length for number, length in ((1, 40), (2, 20), (3, 30), (4, 10))]
    chosen_for = [Router().choose([prompt], SCOPE, 1, replicas) for prompt in prompts]
    assert [replicas.index(replica) for replica in chosen_for] == [0, 1, 2, 1]


# --- what is cached -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cached", "num_more", "is_chosen"),
    [
        (100, 7, True),  # all of it, and 7/32 more load than the other: under a quarter
        (100, 8, False),  # as much
        (40, 3, True),
        (40, 4, False),
        (9, 1, False),  # no whole block
        (10, 0, True),
        (10, 1, False),
    ],
)
def test_a_cached_prefix_is_worth_so_much_more_load(cached: int, num_more: int, is_chosen: bool) -> None:
    for num_at_both in (0, 5):
        replicas = (Replica(num_at_both, 32), Replica(num_at_both + num_more, 32, cached=[cached]))
        assert chosen(*replicas) == int(is_chosen)


def test_the_longest_of_several_prefixes_is_preferred() -> None:
    assert chosen(Replica(cached=[20]), Replica(cached=[60]), Replica(cached=[30])) == 1


def test_an_engine_where_it_would_wait_is_no_choice_while_another_has_a_slot() -> None:
    assert chosen(Replica(31, 32), Replica(32, 32, cached=[100])) == 0
    assert chosen(Replica(33, 32), Replica(32, 32, cached=[100])) == 1
    assert chosen(Replica(0, 32), Replica(1, 32, cached=[100]), n=32) == 0


def test_an_engine_that_is_down_is_no_choice_for_what_it_had_cached() -> None:
    assert chosen(Replica(9, 32), Replica(state="restarting", cached=[100])) == 0


def test_other_scopes_have_cached_other_things() -> None:
    replicas = (Replica(), Replica(cached=[100]))
    assert [chosen(*replicas, scope=scope) for scope in (SCOPE, ("someone", None), (None, "adapter"))] == [1, 0, 0]


def test_the_prompts_of_a_request_count_together() -> None:
    other = [7] * 300
    assert chosen(Replica(0, 32), Replica(1, 32, cached=[100]), prompts=[PROMPT, other]) == 1  # a quarter of a quarter
    assert chosen(Replica(0, 32), Replica(2, 32, cached=[100]), prompts=[PROMPT, other]) == 0


def test_where_a_request_goes_others_like_it_follow() -> None:
    idle = Replica(0)
    replicas: Any = [Replica(1), idle]
    assert Router().choose([PROMPT], SCOPE, 1, replicas) == replicas[1]
    idle.num_in_flight = 1
    assert chosen(*replicas) == 1
    assert chosen(*replicas, prompts=[PROMPT[50:]]) == 0
