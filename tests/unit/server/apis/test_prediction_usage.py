"""What the usage says of drafts, in the fields that OpenAI's clients know."""

from typing import Any

import pytest

from orcinus.engine.frontend.output_processor import OutputProcessor
from orcinus.engine.messages import RequestDelta
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.text.tokenizer import Tokenizer
from orcinus.server.apis.generation import Usage
from tests.unit.engine.fakes import write_byte_tokenizer


def details(outputs: list[RequestOutput], n: int = 2) -> Any:
    usage = Usage(GenerationRequest(request_id="r", prompts=[[1, 2]], sampling=SamplingParams(n=n)))
    for output in outputs:
        usage.add(output)
    return usage.to_dict().get("completion_tokens_details")


def test_drafts_of_all_choices_are_counted_once_however_many_outputs_tell_of_them() -> None:
    first = RequestOutput(index=0, token_ids=[1, 2], num_draft_tokens=3, num_accepted_drafts=1)
    more = RequestOutput(index=0, token_ids=[3], num_draft_tokens=5, num_accepted_drafts=1)
    other = RequestOutput(index=1, token_ids=[1, 2, 3], num_draft_tokens=2, num_accepted_drafts=2)
    assert details([first, other, more]) == {"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 4}


def test_nothing_is_said_where_no_draft_was_tried() -> None:
    assert details([RequestOutput(index=0, token_ids=[1])]) is None


@pytest.fixture
def processor(tmp_path: Any) -> OutputProcessor:
    tokenizer = Tokenizer.load(str(write_byte_tokenizer(tmp_path / "model")))
    return OutputProcessor(tokenizer, 0, [1], SamplingParams(stop=("cd",)))


def delta(text: str, num_drafts: int, num_accepted: int) -> RequestDelta:
    return RequestDelta("r", [*text.encode()], num_draft_tokens=num_drafts, num_accepted_drafts=num_accepted)


def test_accepted_drafts_beyond_a_stop_string_were_for_nothing(processor: OutputProcessor) -> None:
    processor.process(delta("ab", 2, 1))
    output = processor.process(delta("cdefg", 6, 5))
    assert (output.finish_reason, output.token_ids) == ("stop", [*b"cd"])
    assert (output.num_draft_tokens, output.num_accepted_drafts) == (6, 3)


def test_drafts_of_an_engine_that_ended_are_counted_with_those_of_the_next(processor: OutputProcessor) -> None:
    processor.process(delta("ab", 4, 1))
    processor.resume()
    processor.process(delta("e", 0, 0))
    output = processor.process(delta("fg", 3, 1))
    assert (output.num_draft_tokens, output.num_accepted_drafts) == (7, 2)
