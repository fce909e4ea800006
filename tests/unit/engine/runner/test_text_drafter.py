"""What is proposed from a request's own text."""

from orcinus.engine.messages import NewRequest
from orcinus.engine.runner.text_drafter import OwnText, TextDrafter
from orcinus.engine.sampling_params import SamplingParams


def begun(most: int, **texts: list[int]) -> TextDrafter:
    drafter = TextDrafter([OwnText()], most)
    for name, tokens in texts.items():
        drafter.begin(NewRequest(name, tokens, len(tokens), SamplingParams()))
    return drafter


def test_proposals_are_what_followed_the_longest_match_and_the_latest_of_several() -> None:
    text = [0, 1, 2, 3, 4, 10, 1, 2, 3, 4, 11, 9, 2, 3, 4, 12, 1, 2, 3, 4]
    assert begun(3, a=text).propose(["a"]) == {"a": [11, 9, 2]}


def test_what_repeats_itself_goes_on_beyond_the_end_of_the_text() -> None:
    assert begun(5, a=[9, 1, 2, 1, 2, 1, 2]).propose(["a"]) == {"a": [1, 2, 1, 2, 1]}


def test_a_text_without_repetition_and_one_of_two_tokens_bring_no_drafts() -> None:
    assert begun(4, a=[*range(100)], b=[7, 7]).propose(["a", "b"]) == {}


def test_behind_a_token_that_differs_a_text_is_taken_to_go_on_alike_until_matches_would_be_found() -> None:
    drafter = begun(3, a=[1, 2, 3, 10, 4, 5, 6, 7, 8, 1, 2, 3])
    assert drafter.propose(["a"]) == {"a": [10, 4, 5]}
    drafter.take_in({"a": [11]})
    assert drafter.propose(["a"]) == {"a": [4, 5, 6]}
    drafter.take_in({"a": [20]})
    assert drafter.propose(["a"]) == {"a": [5, 6, 7]}
    drafter.take_in({"a": [21]})
    assert drafter.propose(["a"]) == {"a": [6, 7, 8]}
    drafter.take_in({"a": [22]})
    assert drafter.propose(["a"]) == {}
    drafter.take_in({"a": [4, 5, 6]})
    assert drafter.propose(["a"]) == {"a": [7, 8, 1]}


def test_each_request_has_a_text_of_its_own_until_it_is_released() -> None:
    drafter = begun(2, a=[1, 2, 3, 4], b=[1, 2, 3])
    drafter.take_in({"a": [1, 2], "b": [1, 2, 3, 4] * 10})
    drafter.take_in({"a": [3]})
    assert drafter.propose(["a"]) == {"a": [4, 1]}
    assert drafter.propose(["b"]) == {"b": [1, 2]}
    drafter.release("a")
    drafter.release("never known")
    assert drafter._texts.keys() == {"b"}
