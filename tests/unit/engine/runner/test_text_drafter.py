"""What is proposed from a request's own text."""

import pytest

from orcinus.engine.messages import DraftBasis, NewRequest, Proposal
from orcinus.engine.runner.text_drafter import OwnText, TextDrafter
from orcinus.engine.sampling_params import SamplingParams


def begun(most: int, **texts: list[int]) -> TextDrafter:
    drafter = TextDrafter([OwnText()], most)
    for name, tokens in texts.items():
        drafter.begin(NewRequest(name, tokens, len(tokens), SamplingParams()))
    return drafter


def drafts(drafter: TextDrafter, *request_ids: str) -> dict[str, list[int]]:
    return {name: proposal.token_ids for name, proposal in drafter.propose(request_ids).items()}


def test_proposals_are_what_followed_the_longest_match_and_the_latest_of_several() -> None:
    text = [0, 1, 2, 3, 4, 10, 1, 2, 3, 4, 11, 9, 2, 3, 4, 12, 1, 2, 3, 4]
    assert drafts(begun(3, a=text), "a") == {"a": [11, 9, 2]}


def test_what_repeats_itself_goes_on_beyond_the_end_of_the_text() -> None:
    assert drafts(begun(5, a=[9, 1, 2, 1, 2, 1, 2]), "a") == {"a": [1, 2, 1, 2, 1]}


def test_a_text_without_repetition_and_one_of_two_tokens_bring_no_drafts() -> None:
    assert drafts(begun(4, a=[*range(100)], b=[7, 7]), "a", "b") == {}


@pytest.mark.parametrize(("length", "basis"), [(3, "short match"), (4, "short match"), (5, "long match")])
def test_a_proposal_tells_whether_few_tokens_stood_before_or_many(length: int, basis: DraftBasis) -> None:
    repeated = [*range(10, 10 + length)]
    drafter = begun(1, a=[1, *repeated, 50, 2, *repeated])
    assert drafter.propose(["a"]) == {"a": Proposal([50], basis)}


LINE = [1, 2, 3, 10, 4, 5, 6, 7, 8, 9]


def following(*tokens: int, most: int = 3) -> Proposal | None:
    """Return what is proposed where a line's beginning was repeated, and then other tokens came one by one."""
    drafter = begun(most, a=[*LINE, 0, 1, 2, 3])
    assert drafts(drafter, "a") == {"a": LINE[3:][:most]}
    proposal = None
    for token in tokens:
        drafter.take_in({"a": [token]})
        proposal = drafter.propose(["a"]).get("a")
    return proposal


def test_other_tokens_are_taken_for_as_many_in_their_place_until_matches_would_be_found() -> None:
    assert following(11) == Proposal([4, 5, 6], "substitution")
    assert following(11, 20) == Proposal([5, 6, 7], "substitution")
    assert following(11, 20, 21) == Proposal([6, 7, 8], "substitution")
    assert following(11, 20, 21, 22) is None


def test_a_text_goes_on_behind_the_token_that_stands_there_after_more_tokens_or_fewer() -> None:
    assert following(11, 4) == Proposal([5, 6, 7], "realignment"), "as many"
    assert following(11, 12, 13, 14, 15, 4) == Proposal([5, 6, 7], "realignment"), "more"
    assert following(11, 10) == Proposal([4, 5, 6], "realignment"), "nothing is missing"
    assert following(11, 6) == Proposal([7, 8, 9], "realignment"), "fewer"


def test_two_tokens_tell_the_place_better_than_one() -> None:
    text = [1, 2, 3, 10, 30, 40, 31, 50, 30, 60, 0]
    drafter = begun(2, a=[*text, 1, 2, 3])
    drafter.propose(["a"])
    for token, expected in ((11, [30, 40]), (50, [30, 60]), (30, [60, 0])):
        drafter.take_in({"a": [token]})
        assert drafts(drafter, "a") == {"a": expected}


def test_after_many_other_tokens_nobody_looks_where_a_text_goes_on() -> None:
    others = range(100, 200)
    assert following(*others[:30], 4) == Proposal([5, 6, 7], "realignment")
    assert following(*others[:40], 4) is None


def test_tokens_that_came_at_once_are_held_against_as_many() -> None:
    drafter = begun(3, a=[*LINE, 0, 1, 2, 3])
    drafter.propose(["a"])
    drafter.take_in({"a": [10, 4, 15]})
    assert drafter.propose(["a"]) == {"a": Proposal([6, 7, 8], "substitution")}


def test_tokens_that_came_since_are_no_place_to_go_on_from() -> None:
    drafter = begun(3, a=[1, 2, 3, 4, 1, 2, 3])
    drafter.propose(["a"])
    for token, expected in ((50, [1, 2, 3]), (51, [2, 3, 50]), (50, [3, 50, 51])):
        drafter.take_in({"a": [token]})
        assert drafter.propose(["a"]) == {"a": Proposal(expected, "substitution")}


def test_each_request_has_a_text_of_its_own_until_it_is_released() -> None:
    drafter = begun(2, a=[1, 2, 3, 4], b=[1, 2, 3])
    drafter.take_in({"a": [1, 2], "b": [1, 2, 3, 4] * 10})
    drafter.take_in({"a": [3]})
    assert drafts(drafter, "a") == {"a": [4, 1]}
    assert drafts(drafter, "b") == {"b": [1, 2]}
    drafter.release("a")
    drafter.release("never known")
    assert drafter._texts.keys() == {"b"}
