"""A request becomes sequences: one for each choice, with a seed and a bound of its own."""

from typing import Any

from orcinus.engine.admission.request_splitter import RequestSplitter
from orcinus.engine.messages import AddRequest
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams

CONTEXT = 100


def split(splitter: RequestSplitter, *prompts: list[int], **sampling: Any) -> list[AddRequest]:
    request = GenerationRequest(
        request_id="r", prompts=[*prompts], sampling=SamplingParams(**sampling), priority=3, cache_salt="salt"
    )
    return splitter.split(request, CONTEXT, "client")


def test_choices_are_those_of_one_prompt_after_the_other_under_names_of_their_own() -> None:
    splitter = RequestSplitter(0)
    sequences = split(splitter, [1], [2, 2], n=2) + split(splitter, [3])
    assert [sequence.prompt_token_ids for sequence in sequences] == [[1], [1], [2, 2], [2, 2], [3]]
    assert len({sequence.request_id for sequence in sequences}) == 5
    assert {(s.priority, s.cache_salt, s.client, s.sampling.n) for s in sequences} == {(3, "salt", "client", 1)}


def test_without_max_tokens_the_rest_of_the_context_is_the_bound() -> None:
    splitter = RequestSplitter(0)
    assert [s.sampling.max_tokens for s in split(splitter, [1], [2] * 30, max_tokens=None)] == [99, 70]
    assert [s.sampling.max_tokens for s in split(splitter, [1], max_tokens=5)] == [5]


def test_samples_have_seeds_that_follow_from_the_one_asked_for() -> None:
    first, again = (split(RequestSplitter(None), [1], [2], n=3, seed=7) for _ in range(2))
    seeds = [sequence.sampling.seed for sequence in first]
    assert seeds == [sequence.sampling.seed for sequence in again]
    assert seeds[0] == seeds[3] == 7
    assert len(set(seeds[:3])) == 3


def test_seeds_that_are_not_asked_for_are_repeatable_where_the_engine_has_one() -> None:
    def seeds(engine_seed: int | None) -> list[int | None]:
        splitter = RequestSplitter(engine_seed)
        return [s.sampling.seed for s in split(splitter, [1], n=2) + split(splitter, [1])]

    assert seeds(5) == seeds(5)
    assert len(set(seeds(5))) == 3
    assert seeds(None) != seeds(None)
