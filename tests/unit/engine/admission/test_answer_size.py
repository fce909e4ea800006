"""How many log-probabilities a request may ask for, counted before it runs."""

from typing import Any

import pytest

from orcinus.engine.admission.answer_size import DEFAULT_MAX_LOGPROBS, check_logprobs
from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams

CONTEXT = 1000


def request(*prompt_lengths: int, **sampling: Any) -> GenerationRequest:
    prompts = [[1] * length for length in prompt_lengths]
    return GenerationRequest(request_id="r", prompts=prompts, sampling=SamplingParams(**sampling))


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        (request(5, max_tokens=10, logprobs=0), 10),
        (request(5, max_tokens=10, logprobs=3), 40),
        (request(5, max_tokens=10, logprobs=3, n=4), 160),
        (request(5, 7, max_tokens=10, logprobs=3, n=4), 320),
        (request(400, max_tokens=None, logprobs=1), 1200),
        (request(400, 900, max_tokens=None, logprobs=1), 1400),
        (request(5, 7, max_tokens=10, prompt_logprobs=2), 36),
        (request(5, 7, max_tokens=10, prompt_logprobs=2, n=2), 72),
        (request(5, 7, max_tokens=10, prompt_logprobs=2, logprobs=0, n=2), 112),
        (request(5, max_tokens=0, prompt_logprobs=0), 5),
    ],
)
def test_every_token_has_its_own_and_its_alternatives_in_each_choice(asked: GenerationRequest, number: int) -> None:
    check_logprobs(asked, number, CONTEXT)
    with pytest.raises(
        InvalidRequestError, match=rf"at most {number - 1} .*max_logprobs_per_request.* asks for {number}:"
    ):
        check_logprobs(asked, number - 1, CONTEXT)


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"logprobs": 5}, "logprobs"),
        ({"prompt_logprobs": 5}, "prompt_logprobs"),
        ({"logprobs": 0, "prompt_logprobs": 20}, "prompt_logprobs"),
        ({"logprobs": 20, "prompt_logprobs": 0}, "logprobs"),
    ],
)
def test_the_larger_part_is_blamed(sampling: dict[str, int], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_logprobs(request(10, max_tokens=10, **sampling), 1, CONTEXT)
    assert caught.value.param == param


def test_text_alone_is_not_bounded() -> None:
    check_logprobs(request(*[900] * 256, n=128, max_tokens=100), 1, CONTEXT)


@pytest.mark.parametrize("context", [1000, 1_000_000])
def test_by_default_one_choice_over_the_whole_context_always_may(context: int) -> None:
    check_logprobs(request(1, max_tokens=None, logprobs=20), None, context)
    check_logprobs(request(context - 1, max_tokens=1, prompt_logprobs=20), None, context)
    check_logprobs(request(1, n=32, max_tokens=1000, logprobs=20), None, context)
    most = max(DEFAULT_MAX_LOGPROBS, 21 * context)
    with pytest.raises(InvalidRequestError, match=f"at most {most} "):
        check_logprobs(request(1, n=2, max_tokens=most // 2 + 1, logprobs=0), None, context)
