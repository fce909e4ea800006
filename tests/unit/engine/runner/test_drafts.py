"""Which samples stand, against sampling one token after the other."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.engine.messages import ScheduledRequest, TokenLogprobs
from orcinus.engine.runner.drafts import accept, num_accepted, sample_positions
from orcinus.engine.sampling.sampler import SampledRows


def item(name: str, first: int, drafts: Sequence[int] = ()) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=name,
        num_computed_tokens=first,
        num_tokens=1 + len(drafts),
        num_samples=1 + len(drafts),
        draft_token_ids=tuple(drafts),
    )


def rows(token_ids: list[int], broken: Sequence[int] = (), without_choice: Sequence[int] = ()) -> SampledRows:
    return SampledRows(
        token_ids=token_ids,
        is_finite=[i not in broken for i in range(len(token_ids))],
        has_choice=[i not in without_choice for i in range(len(token_ids))],
    )


def next_token(text: tuple[int, ...]) -> int:
    """Of two tokens, so that drafts are often right."""
    return hash(text) % 2


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), max_size=6))
def test_accepted_tokens_are_those_of_one_after_the_other(drafts: list[int]) -> None:
    sampled = [next_token(tuple(drafts[:i])) for i in range(len(drafts) + 1)]
    count = num_accepted(drafts, sampled, [True] * len(sampled))
    text: tuple[int, ...] = ()
    for token in sampled[:count]:
        assert token == next_token(text)
        text += (token,)
    assert count == len(sampled) or drafts[count - 1] != sampled[count - 1], "no fewer than there could be"


@pytest.mark.parametrize(
    ("broken", "expected"), [((), 3), ((2,), 2), ((1,), 1), ((0,), 0), ((1, 2), 1), ((0, 1, 2), 0)]
)
def test_nothing_is_accepted_from_where_a_position_gives_no_token(broken: tuple[int, ...], expected: int) -> None:
    assert num_accepted([4, 5], [4, 5, 6], [i not in broken for i in range(3)]) == expected


def test_samples_are_the_last_positions_of_their_requests() -> None:
    positions = sample_positions([3, 1, 2])
    assert positions.starts.tolist() == [0, 3, 4, 6]
    assert positions.requests.tolist() == [0, 0, 0, 1, 2, 2]
    assert positions.behind.tolist() == [2, 1, 0, 0, 1, 0]


def test_each_request_gets_its_own_samples_and_their_logprobs() -> None:
    scheduled = [item("a", 7, [10, 11]), item("b", 3), item("c", 5, [20])]
    sampled = rows([10, 12, 99, 30, 20, 21])
    sampled.logprobs.extend(TokenLogprobs(token_id=token, logprob=-1.0) for token in sampled.token_ids)
    accepted = accept(scheduled, sample_positions([3, 1, 2]), sampled)
    assert accepted.token_ids == [[10, 12], [30], [20, 21]]
    assert [[entry.token_id for entry in own if entry] for own in accepted.logprobs] == accepted.token_ids
    assert accepted.first.token_ids == [10, 30, 20]
    assert accepted.is_spoiled == [False] * 3
    assert accepted.broken_from == [None] * 3


def test_what_is_broken_behind_a_wrong_draft_breaks_no_request_and_is_named() -> None:
    accepted = accept([item("a", 7, [10, 11])], sample_positions([3]), rows([5, 12, 99], broken=[2]))
    assert accepted.token_ids == [[5]]
    assert accepted.first.is_finite == [True]
    assert (accepted.is_spoiled, accepted.broken_from) == ([False], [1])


def test_a_step_is_spoiled_only_where_drafts_may_have_done_it() -> None:
    scheduled = [item("a", 7, [10]), item("b", 3), item("c", 5, [20])]
    sampled = rows([0, 0, 30, 0, 0], broken=[0, 2], without_choice=[3])
    accepted = accept(scheduled, sample_positions([2, 1, 2]), sampled)
    assert accepted.token_ids == [[], [], []]
    assert accepted.is_spoiled == [True, False, False]
    assert accepted.broken_from == [0, None, None]
    assert accepted.first.has_choice == [True, True, False]
