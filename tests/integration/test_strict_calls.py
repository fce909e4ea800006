"""Strict tools where calls are left to the model, through the whole engine: what begins is valid, the rest is free."""

from collections import Counter
from typing import Any

import jsonschema
import msgspec
import pytest

from orcinus import LLM, SamplingParams
from orcinus.config.settings import demo_model_path
from orcinus.engine.messages import AddRequest, RequestDelta
from orcinus.engine.outputs import RequestOutput
from orcinus.engine.sampling_params import Grammar
from orcinus.engine.text.tokenizer import Tokenizer
from orcinus.server.apis.call_forms import held_to_strict
from orcinus.server.reading.message_format import MessageFormat
from tests.effort import slow_but_for
from tests.unit.server.reading.tools.calling import function, tool_use
from tests.unit.server.reading.tools.templates import QWEN_2_5
from tests.unit.server.reading.tools.walking import NOTE, UNIT, calls_in

TOOLS = [function("note", NOTE, strict=True), function("set_unit", UNIT, strict=True), function("any", NOTE)]
SCHEMAS: dict[str, Any] = {"note": NOTE, "set_unit": UNIT, "any": {"type": "object"}}
USE = tool_use(TOOLS)
PROMPTS = ["A note on the weather: ", "Which unit do you take? "]
OPENING = "<tool_call>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(demo_model_path()))


@pytest.fixture(scope="module")
def form(tokenizer: Tokenizer) -> MessageFormat:
    return MessageFormat.detect(QWEN_2_5, tokenizer.added_token_id)


@pytest.fixture(scope="module")
def grammar(form: MessageFormat) -> Grammar:
    made = form.grammar("", held_to_strict(USE))
    assert made is not None
    return made


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(device="cpu", dtype="bfloat16", max_num_seqs=16, kv_cache_memory="32MiB")


def outputs_of(llm: LLM, params: SamplingParams) -> list[RequestOutput]:
    return [output for result in llm.generate(PROMPTS, params) for output in result.outputs]


@pytest.mark.parametrize("max_tokens", slow_but_for([48, 160], 48))
def test_of_200_hot_samples_every_call_that_begins_is_valid(
    llm: LLM, form: MessageFormat, grammar: Grammar, tokenizer: Tokenizer, max_tokens: int
) -> None:
    opening = tokenizer.added_token_id(OPENING)
    assert opening is not None
    params = SamplingParams(
        n=100, max_tokens=max_tokens, temperature=1.5, seed=7, grammar=grammar, logit_bias={opening: 14.0}
    )
    outputs = outputs_of(llm, params)
    assert len(outputs) == 200
    num_begun, reasons, names = 0, Counter[str | None](), Counter[str]()
    for output in outputs:
        assert len(output.token_ids) <= max_tokens
        is_cut = output.finish_reason == "length"
        calls = calls_in(form, output.text, USE, is_cut=is_cut)
        assert len(calls) == output.text.count(OPENING + "\n{")
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])
        num_begun += bool(calls)
        names.update(name for name, _ in calls)
        reasons[output.finish_reason] += bool(calls)
    assert num_begun >= 50
    assert names.keys() == SCHEMAS.keys()
    assert reasons["length"] >= 5  # calls among them that the limit has ended


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 1.5, "seed": 3, "n": 20, "logprobs": 2}])
def test_text_without_a_call_is_what_it_would_be_without_tools(
    llm: LLM, grammar: Grammar, params: dict[str, Any]
) -> None:
    plain = SamplingParams(max_tokens=60, **params)
    held = msgspec.structs.replace(plain, grammar=grammar)
    expected, outputs = outputs_of(llm, plain), outputs_of(llm, held)
    same = 0
    for with_grammar, without in zip(outputs, expected, strict=True):
        if OPENING in without.text:
            continue
        same += 1
        assert with_grammar.token_ids == without.token_ids
        assert with_grammar.finish_reason == without.finish_reason
        assert with_grammar.logprobs == without.logprobs
    assert same >= 2


@pytest.mark.parametrize("max_tokens", [50, 70])
def test_text_with_calls_is_the_same_wherever_its_engine_ended(
    llm: LLM, grammar: Grammar, tokenizer: Tokenizer, max_tokens: int
) -> None:
    """A request that was never interrupted, and those that go on in another engine after each of its tokens."""
    opening = tokenizer.added_token_id(OPENING)
    assert opening is not None
    params = SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=8, grammar=grammar, logit_bias={opening: 12.0})
    undisturbed = AddRequest("whole", tokenizer.encode(PROMPTS[0]), params, 0.0)
    deltas = run(llm, [undisturbed])
    whole, finish_reason = [token_id for delta in deltas for token_id in delta.token_ids], deltas[-1].finish_reason
    assert opening in whole
    begun = [
        msgspec.structs.replace(
            undisturbed, request_id=str(i), output_token_ids=whole[:i], is_steered=i > 0 and deltas[i - 1].is_steered
        )
        for i in range(len(whole))
    ]
    ends: dict[str, tuple[list[int], Any]] = {request.request_id: (request.output_token_ids, None) for request in begun}
    for delta in run(llm, begun):
        ends[delta.request_id] = ends[delta.request_id][0] + delta.token_ids, delta.finish_reason
    assert [*ends.values()] == [(whole, finish_reason)] * len(whole)


def run(llm: LLM, requests: list[AddRequest]) -> list[RequestDelta]:
    deltas: list[RequestDelta] = []
    for request in requests:
        llm._core.add_request(request)
    while llm._core.has_work:
        deltas += llm._core.step().deltas
    return deltas
