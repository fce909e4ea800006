"""What can never be served is refused before it has a place anywhere."""

import pytest

from orcinus.engine.admission.request_checks import check_request
from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams
from tests.unit.engine.fakes import fake_info


def with_adapter(adapter: str | None) -> GenerationRequest:
    return GenerationRequest(request_id="r", prompts=[[1]], sampling=SamplingParams(max_tokens=1), adapter=adapter)


def test_an_adapter_that_the_engine_does_not_have_is_refused_by_name() -> None:
    info = fake_info(adapters=["french", "legal"])
    check_request(with_adapter("legal"), info)
    check_request(with_adapter(None), info)
    with pytest.raises(InvalidRequestError, match="there is no adapter 'german': the engine has french, legal"):
        check_request(with_adapter("german"), info)
    with pytest.raises(InvalidRequestError, match="there is no adapter 'legal': the engine has none"):
        check_request(with_adapter("legal"), fake_info())


def test_a_model_without_a_head_embeds_and_says_why_it_does_not_write() -> None:
    info = fake_info(has_head=False, architecture="MistralModel")
    pooled = SamplingParams(max_tokens=0, pooling="mean")
    check_request(GenerationRequest(request_id="r", prompts=[[1]], sampling=pooled), info)
    for max_tokens in (0, 1):
        request = GenerationRequest(request_id="r", prompts=[[1]], sampling=SamplingParams(max_tokens=max_tokens))
        with pytest.raises(InvalidRequestError, match=r"\(MistralModel\) has no language-model head.*/v1/embeddings"):
            check_request(request, info)
