"""What is proposed from past answers: to whom, what of several, and how much is kept."""

import pytest

from orcinus.engine.messages import NewRequest
from orcinus.engine.runner import past_answers
from orcinus.engine.runner.past_answers import PastAnswers, likeliest
from orcinus.engine.runner.text_drafter import OwnText, TextDrafter
from orcinus.engine.sampling_params import SamplingParams
from tests.unit.engine.runner.test_text_drafter import drafts

PROMPT = [90, 91, 92]


def begin(
    drafter: TextDrafter,
    name: str,
    prompt: list[int],
    output: list[int] | None = None,
    *,
    salt: str | None = None,
    adapter: str | None = None,
) -> None:
    """Let the drafter meet a request that may have got tokens before."""
    token_ids = prompt + (output or [])
    drafter.begin(NewRequest(name, token_ids, len(prompt), SamplingParams(), adapter=adapter, cache_salt=salt))


def answer(drafter: TextDrafter, tokens: list[int], *, salt: str | None = None, adapter: str | None = None) -> None:
    begin(drafter, "past", PROMPT, salt=salt, adapter=adapter)
    drafter.take_in({"past": tokens})
    drafter.release("past")


@pytest.fixture(params=["alone", "beside its own text"])
def drafter(request: pytest.FixtureRequest) -> TextDrafter:
    return TextDrafter([PastAnswers()] if request.param == "alone" else [OwnText(), PastAnswers()], 4)


def test_the_answer_that_was_given_to_such_a_prompt_is_proposed_from_its_first_token_on(drafter: TextDrafter) -> None:
    answer(drafter, [1, 2, 3, 4, 5, 6])
    begin(drafter, "a", [*range(40, 80), *PROMPT])
    assert drafts(drafter, "a") == {"a": [1, 2, 3, 4]}
    drafter.take_in({"a": [1, 2, 3]})
    assert drafts(drafter, "a") == {"a": [4, 5, 6]}
    drafter.take_in({"a": [4, 5, 6]})
    assert drafts(drafter, "a") == {}


def test_an_answer_is_proposed_only_once_its_request_has_ended(drafter: TextDrafter) -> None:
    begin(drafter, "first", PROMPT)
    begin(drafter, "second", PROMPT)
    drafter.take_in({"first": [1, 2, 3, 4, 5], "second": [1, 2, 3]})
    assert drafts(drafter, "second") == {}
    drafter.release("first")
    assert drafts(drafter, "second") == {"second": [4, 5]}


@pytest.mark.parametrize(("salt", "adapter"), [("s", None), (None, "s")])
def test_answers_of_another_salt_or_adapter_are_not_seen(
    drafter: TextDrafter, salt: str | None, adapter: str | None
) -> None:
    answer(drafter, [1, 2, 3, 4])
    begin(drafter, "a", PROMPT, salt=salt, adapter=adapter)
    assert drafts(drafter, "a") == {}
    answer(drafter, [5, 6, 7], salt=salt, adapter=adapter)
    assert drafts(drafter, "a") == {"a": [5, 6, 7]}
    begin(drafter, "b", PROMPT)
    assert drafts(drafter, "b") == {"b": [1, 2, 3, 4]}


def test_the_longest_match_counts_and_of_as_long_ones_what_most_agree_on(drafter: TextDrafter) -> None:
    answer(drafter, [1, 2, 3, 7, 7])
    answer(drafter, [1, 2, 3, 4, 5])
    answer(drafter, [1, 2, 3, 4, 6])
    answer(drafter, [8, 2, 3, 9])
    begin(drafter, "a", [50, 51, 8])
    drafter.take_in({"a": [2, 3]})
    assert drafts(drafter, "a") == {"a": [9]}
    begin(drafter, "b", PROMPT)
    drafter.take_in({"b": [1, 2, 3]})
    assert drafts(drafter, "b") == {"b": [4, 6]}, "of as many the latest"


def test_ways_are_followed_together_while_a_quarter_of_all_agrees() -> None:
    ways = [[1, 2, 3], [1, 2, 4], [1, 5], [6], []]
    assert likeliest(ways) == [1, 2]
    assert likeliest(ways[:2]) == [1, 2, 3]
    assert likeliest([[], []]) == []


def test_what_a_preempted_request_had_written_is_kept_once(drafter: TextDrafter) -> None:
    begin(drafter, "a", PROMPT)
    drafter.take_in({"a": [1, 2, 3, 4]})
    drafter.release("a")
    begin(drafter, "a", PROMPT, [1, 2, 3, 4])
    drafter.release("a")
    begin(drafter, "a", PROMPT, [1, 2, 3, 4])
    drafter.take_in({"a": [5, 6]})
    drafter.release("a")
    past = drafter._sources[-1]
    assert isinstance(past, PastAnswers)
    (answers,) = past._tenants.values()
    assert answers.generations[0].text.tolist() == [*PROMPT, 1, 2, 3, 4, -1, *PROMPT, 1, 2, 3, 4, 5, 6, -1]


def test_memory_is_bounded_by_dropping_the_older_generation_and_the_tenant_unseen_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(past_answers, "MAX_GENERATION_TOKENS", 40)
    monkeypatch.setattr(past_answers, "MAX_TENANTS", 2)
    past = PastAnswers()
    drafter = TextDrafter([past], 2)
    for i in range(20):
        answer(drafter, [100 * i + j for j in range(10)])
        (answers,) = past._tenants.values()
        assert answers.num_tokens <= 80
        begin(drafter, "a", [100 * max(0, i - 2) + j for j in range(3)])
        assert drafter.propose(["a"]), "at least a generation is there"
    begin(drafter, "a", [0, 1, 2])
    assert drafts(drafter, "a") == {}
    answer(drafter, [*range(500)])
    assert answers.num_tokens <= 80
    for salt in ("s", "t"):
        answer(drafter, [1, 2, 3], salt=salt)
    assert past._tenants.keys() == {("s", None), ("t", None)}


def test_the_longer_match_wins_and_of_as_long_ones_the_requests_own() -> None:
    drafter = TextDrafter([OwnText(), PastAnswers()], 2)
    answer(drafter, [1, 2, 3, 4])
    begin(drafter, "own", [1, 2, 3, 5, 6, 1, 2])
    drafter.take_in({"own": [3]})
    assert drafts(drafter, "own") == {"own": [5, 6]}
    begin(drafter, "past", [1, 2, 3, 5, 6, *PROMPT, 1, 2, 3])
    assert drafts(drafter, "past") == {"past": [4]}
