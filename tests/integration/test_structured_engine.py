"""Grammars through the whole engine on the demo model: texts validate, bombs fail alone, and batches agree."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import jsonschema
import msgspec
import pytest

from orcinus import LLM, SamplingParams
from orcinus.config.settings import load_settings
from orcinus.engine.errors import InvalidRequestError, RequestFailedError
from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.grammar.compiler import CompiledGrammar, GrammarCompiler
from orcinus.engine.messages import AddRequest, RequestDelta, StepOutputs
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.engine.sampling_params import Grammar, GrammarKind, Thinking
from orcinus.server.reading.pieces import ToolCallArguments, ToolCallStart
from tests.effort import scaled, slow_but_for
from tests.server_process import PATIENCE_S
from tests.unit.server.reading.tools import templates
from tests.unit.server.reading.tools.calling import detect, function, read_all, tool_use

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 16},
        "population": {"type": "integer", "minimum": 1, "maximum": 40_000_000},
        "kind": {"enum": ["capital", "port"]},
        "near": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
    },
    "required": ["city", "population", "kind"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA))
RAMBLING: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "notes": {"type": "array", "items": {"type": "string"}},
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "at": {"type": "array", "items": {"type": "number"}}},
            "required": ["city", "at"],
            "additionalProperties": False,
        },
    },
    "required": ["title", "notes", "place"],
    "additionalProperties": False,
}
HIDDEN_BOMB = Grammar("regex", "x(a{1000}){1000}")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(device="cpu", dtype="float32", max_num_seqs=16, kv_cache_memory="32MiB")


def tokens(llm: LLM, prompts: list[str], params: list[SamplingParams]) -> list[list[int]]:
    return [result.outputs[0].token_ids for result in llm.generate(prompts, params)]


@pytest.mark.scaled
def test_samples_of_a_schema_are_valid(llm: LLM) -> None:
    count = scaled(100)
    params = SamplingParams(n=count, max_tokens=250, temperature=1.0, seed=5, grammar=JSON)
    results = llm.generate(["A city: ", "Paris is"], params)
    outputs = [output for result in results for output in result.outputs]
    assert [output.finish_reason for output in outputs] == ["stop"] * 2 * count
    for output in outputs:
        jsonschema.validate(json.loads(output.text), SCHEMA)
    assert len({output.text for output in outputs}) > count / 2


def outputs_of(llm: LLM, grammar: Grammar, max_tokens: int) -> list[RequestOutput]:
    params = SamplingParams(n=20, max_tokens=max_tokens, temperature=1.0, seed=5, grammar=grammar)
    return [output for result in llm.generate(["A city: ", "Paris is"], params) for output in result.outputs]


@pytest.mark.parametrize("max_tokens", slow_but_for([60, 120], 60))
def test_answers_that_would_go_on_too_long_are_brought_to_their_end(llm: LLM, max_tokens: int) -> None:
    outputs = outputs_of(llm, Grammar("json_schema", json.dumps(RAMBLING)), max_tokens)
    for output in outputs:
        jsonschema.validate(json.loads(output.text), RAMBLING)
        assert len(output.token_ids) <= max_tokens
    assert Counter(output.finish_reason for output in outputs)["length"] >= 30


def test_an_object_that_ends_in_time_stops_and_one_that_would_not_is_brought_to_its_end(llm: LLM) -> None:
    outputs = outputs_of(llm, Grammar("json_object"), 40)
    assert all(isinstance(json.loads(output.text), dict) for output in outputs)
    reasons = Counter(output.finish_reason for output in outputs)
    assert reasons.keys() == {"stop", "length"}
    assert min(reasons.values()) >= 5


@pytest.mark.parametrize(
    "template", slow_but_for([templates.QWEN_2_5, templates.LLAMA_3_1, templates.LLAMA_4_PYTHONIC], templates.QWEN_2_5)
)
def test_calls_that_are_required_are_whole_within_a_tight_limit(llm: LLM, template: str) -> None:
    use = tool_use([function("note", RAMBLING), function("stop")], "required")
    grammar = detect(template).grammar("", use)
    assert grammar is not None
    outputs = outputs_of(llm, grammar, 110)
    for output in outputs:
        pieces = read_all(detect(template), [output.text], use=use)
        started = [piece.name for piece in pieces if isinstance(piece, ToolCallStart)]
        arguments = [json.loads(piece.text) for piece in pieces if isinstance(piece, ToolCallArguments)]
        assert 1 <= len(started) == len(arguments)
        for name, value in zip(started, arguments, strict=True):
            jsonschema.validate(value, RAMBLING if name == "note" else {"type": "object"})
    assert any(output.finish_reason == "length" for output in outputs)


def test_an_end_that_the_limit_calls_for_is_no_text(llm: LLM) -> None:
    """After one group another does not fit."""
    grammar = Grammar("regex", "(abcdefghij)+")
    length = len(llm.tokenizer.encode("abcdefghij", add_special_tokens=False))
    params = SamplingParams(n=8, max_tokens=length + 2, seed=1, logprobs=0, skip_special_tokens=False, grammar=grammar)
    for output in llm.generate("Letters: ", params)[0].outputs:
        assert output.text == "abcdefghij"
        assert output.finish_reason in {"stop", "length"}
        assert len(output.token_ids) == len(output.logprobs or [])


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        (Grammar("choice", '["Paris", "Rome", "Ro"]'), {"Paris", "Rome", "Ro"}),
        (Grammar("regex", "[ab]{2}"), {"aa", "ab", "ba", "bb"}),
        (Grammar("grammar", 'root ::= "yes" | "no" "pe"?'), {"yes", "no", "nope"}),
    ],
)
def test_texts_are_whole_and_stop_by_themselves(llm: LLM, grammar: Grammar, texts: set[str]) -> None:
    for extra in ({}, {"ignore_eos": True}, {"min_tokens": 20}):
        params = SamplingParams(n=8, max_tokens=30, seed=1, grammar=grammar, **extra)
        outputs = llm.generate("The capital of Italy is ", params)[0].outputs
        assert {output.text for output in outputs} <= texts
        assert {(output.finish_reason, output.stop_reason) for output in outputs} == {("stop", None)}


@pytest.mark.parametrize(
    ("grammar", "fewest"),
    [
        (Grammar("regex", "[a-z]+"), 12),
        (Grammar("regex", "[ab]{2}([0-9][a-z])*"), 12),
        (Grammar("grammar", 'root ::= ("yes" | "no" | " ")*'), 12),
        (Grammar("regex", "[a-c]{1,4}"), 1),  # it has an end before the minimum, and nothing after it
    ],
)
def test_a_minimum_holds_as_long_as_the_text_may_go_on(llm: LLM, grammar: Grammar, fewest: int) -> None:
    params = SamplingParams(n=8, max_tokens=30, min_tokens=12, seed=1, grammar=grammar)
    for output in llm.generate("Letters: ", params)[0].outputs:
        assert len(output.token_ids) >= fewest
        assert output.text
        if fewest == 1:
            assert (len(output.text), output.finish_reason) == (4, "stop")


def test_greedy_choice_is_the_likeliest_that_is_allowed(llm: LLM) -> None:
    params = SamplingParams(max_tokens=9, temperature=0, grammar=Grammar("choice", '[" Rome", " Paris", " Berlin"]'))
    assert llm.generate("The capital of France is", params)[0].outputs[0].text == " Paris"


def test_a_request_has_the_same_tokens_alone_and_among_others_with_and_without_grammars(llm: LLM) -> None:
    params = [
        SamplingParams(max_tokens=40, temperature=1.0, seed=1, grammar=JSON),
        SamplingParams(max_tokens=20, temperature=1.0, seed=2, ignore_eos=True),
        SamplingParams(max_tokens=40, temperature=0, grammar=Grammar("json_object")),
        SamplingParams(max_tokens=20, temperature=0, presence_penalty=1.0, ignore_eos=True),
        SamplingParams(max_tokens=20, seed=5, grammar=Grammar("regex", "[a-z ]{40}"), bad_words_token_ids=((97,),)),
        SamplingParams(max_tokens=20, seed=6, allowed_token_ids=tuple(range(300, 340)), ignore_eos=True),
    ]
    prompts = [f"Number {i}: " for i in range(len(params))]
    together = tokens(llm, prompts, params)
    for i in range(len(params)):
        assert tokens(llm, [prompts[i]], [params[i]]) == [together[i]]
    assert set(together[5]) <= set(range(300, 340))


@pytest.mark.parametrize(
    ("schema", "max_tokens", "reason"),
    [(SCHEMA, 200, "stop"), pytest.param(RAMBLING, 150, "length", marks=pytest.mark.slow)],
)
def test_preempted_requests_go_on_with_their_grammar_as_if_nothing_had_been(
    llm: LLM, schema: Any, max_tokens: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks for fewer tokens than the requests come to."""
    small = LLM(
        device="cpu", dtype="float32", max_num_seqs=12, kv_cache_memory="2MiB", max_model_len=256, block_size=16
    )
    grammar = Grammar("json_schema", json.dumps(schema))
    params = SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=3, n=12, grammar=grammar)
    num_preemptions, step = [], small._core.step

    def counting_step() -> StepOutputs:
        outputs = step()
        num_preemptions.append(outputs.stats.num_preemptions)
        return outputs

    monkeypatch.setattr(small._core, "step", counting_step)
    outputs, undisturbed = small.generate("A city: ", params)[0].outputs, llm.generate("A city: ", params)[0].outputs
    assert [output.token_ids for output in outputs] == [output.token_ids for output in undisturbed]
    for output in outputs:
        assert output.finish_reason == reason
        jsonschema.validate(json.loads(output.text), schema)
    assert sum(num_preemptions) > 0


def test_no_step_compiles_a_grammar_however_many_wait(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more of them than are kept for later requests, and than there are slots."""
    monkeypatch.setattr("orcinus.engine.grammar.compiler._MAX_KEPT", 4)
    compile_grammar, compiled_by = GrammarCompiler.compile, []

    def compile_and_tell(self: GrammarCompiler, kind: GrammarKind, source: str, *rest: Any) -> CompiledGrammar:
        compiled_by.append(threading.current_thread().name)
        return compile_grammar(self, kind, source, *rest)

    monkeypatch.setattr(GrammarCompiler, "compile", compile_and_tell)
    words = [f"word {number}" for number in range(40)]
    params = [SamplingParams(max_tokens=20, grammar=Grammar("choice", json.dumps([word]))) for word in words]
    results = llm.generate(["Say: "] * 40, params)
    assert [result.outputs[0].text for result in results] == words
    assert len(compiled_by) == 40
    assert all(name.startswith("grammar") for name in compiled_by)


def run(llm: LLM, requests: list[AddRequest]) -> list[RequestDelta]:
    deltas: list[RequestDelta] = []
    for request in requests:
        llm._core.add_request(request)
    while llm._core.has_work:
        deltas += llm._core.step().deltas
    return deltas


@pytest.mark.parametrize(
    "grammar", [Grammar("json_schema", json.dumps(RAMBLING)), Grammar("regex", "(?s:[^<]*)</end>")]
)
def test_a_text_near_its_limit_is_the_same_wherever_its_engine_ended(llm: LLM, grammar: Grammar) -> None:
    """A request that was never interrupted, and those that go on in another engine after each of its tokens."""
    params = SamplingParams(max_tokens=50, temperature=1.0, seed=8, grammar=grammar)
    undisturbed = AddRequest("whole", llm.tokenizer.encode("A city: "), params, 0.0)
    deltas = run(llm, [undisturbed])
    whole, finish_reason = [token_id for delta in deltas for token_id in delta.token_ids], deltas[-1].finish_reason
    steered = [delta.is_steered for delta in deltas for _ in delta.token_ids]
    begun = [
        msgspec.structs.replace(
            undisturbed, request_id=str(i), output_token_ids=whole[:i], is_steered=i > 0 and steered[i - 1]
        )
        for i in range(len(whole))
    ]
    ends: dict[str, tuple[list[int], Any]] = {request.request_id: (request.output_token_ids, None) for request in begun}
    for delta in run(llm, begun):
        ends[delta.request_id] = ends[delta.request_id][0] + delta.token_ids, delta.finish_reason
    assert deltas[-1].is_steered
    assert [*ends.values()] == [(whole, finish_reason)] * len(whole)


def test_thinking_comes_before_the_grammar(llm: LLM) -> None:
    end = llm.tokenizer.encode("\n", add_special_tokens=False)
    grammar = Grammar("choice", '["yes", "no"]', thinking=Thinking(end=tuple(end)))
    params = SamplingParams(max_tokens=400, seed=4, n=4, grammar=grammar, logit_bias={end[-1]: 3.0})
    for output in llm.generate("Think: ", params)[0].outputs:
        assert output.finish_reason == "stop"
        assert output.text.rpartition("\n")[2] in ("yes", "no")


def test_bad_words_do_not_come_up(llm: LLM) -> None:
    prompt, params = "The capital of France is", SamplingParams(max_tokens=8, temperature=0)
    (free,) = tokens(llm, [prompt], [params])
    banned = msgspec.structs.replace(params, bad_words_token_ids=((free[1], free[2]),))
    (found,) = tokens(llm, [prompt], [banned])
    assert found[:2] == free[:2]
    assert found[2] != free[2]


def test_parameters_that_leave_nothing_to_choose_fail_their_request_alone(llm: LLM) -> None:
    params = [
        SamplingParams(max_tokens=5, seed=1, grammar=Grammar("regex", "[0-9]+"), allowed_token_ids=(0,)),
        SamplingParams(max_tokens=5, seed=1, ignore_eos=True),
    ]
    failed, fine = (result.outputs[0] for result in llm.generate(["x", "y"], params))
    assert failed.finish_reason == "error"
    assert "ruled out" in (failed.error or "")
    assert len(fine.token_ids) == 5


@asynccontextmanager
async def running_engine() -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(load_settings(device="cpu", max_num_seqs=4, kv_cache_memory="32MiB", max_queue_len=8))
    engine.start()
    run = asyncio.create_task(engine.run())
    try:
        await engine.wait_ready()
        yield engine
    finally:
        await engine.aclose()
        await run


def request(engine: AsyncEngine, max_tokens: int, grammar: Grammar | None = None) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=max_tokens, seed=1, grammar=grammar, ignore_eos=grammar is None)
    return GenerationRequest(request_id="test", prompts=[engine.tokenizer.encode("Hello")], sampling=sampling)


async def read(stream: AsyncIterator[RequestOutput]) -> str:
    return "".join([output.text async for output in stream])


class Neighbour:
    """A client that reads one stream after the other, in a task of its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.num_outputs = 0
        self._engine = engine
        self._task = asyncio.create_task(self._read_on())

    async def _read_on(self) -> None:
        while True:
            async for _ in self._engine.submit(request(self._engine, 400)):
                self.num_outputs += 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def read(self, count: int) -> None:
        """Wait until so many more outputs have come."""
        wanted = self.num_outputs + count
        async with asyncio.timeout(PATIENCE_S):
            while self.num_outputs < wanted:  # noqa: ASYNC110  (nobody sets an event for it)
                await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_bombs_fail_alone_and_the_others_go_on() -> None:
    """One is refused by the gate; another, which got past it, fails in the engine. Their neighbour streams on."""
    async with running_engine() as engine, Neighbour(engine) as neighbour:
        await read(engine.submit(request(engine, 5, JSON)))
        with pytest.raises(InvalidRequestError, match="too complex"):
            await engine.check_grammar(Grammar("regex", "(a{1000}){1000}"), "structured_outputs")
        with pytest.raises(RequestFailedError, match=r"too complex|cannot be followed"):  # a limit on time, or on size
            await read(engine.submit(request(engine, 5, HIDDEN_BOMB)))
        await neighbour.read(8)
        with pytest.raises(RequestFailedError, match="regular expression"):
            await read(engine.submit(request(engine, 5, Grammar("regex", "[a"))))
        with pytest.raises(InvalidRequestError, match="uniqueItems"):
            await engine.check_grammar(Grammar("json_schema", '{"uniqueItems": true}'), "response_format")
        await engine.check_grammar(JSON, "response_format")
        jsonschema.validate(json.loads(await read(engine.submit(request(engine, 250, JSON)))), SCHEMA)


@pytest.mark.slow
async def test_a_request_that_leaves_while_its_grammar_is_compiled_is_forgotten() -> None:
    async with running_engine() as engine:
        large = Grammar("json_schema", json.dumps({"properties": {f"p{i}": {} for i in range(2000)}}))
        stream = engine.submit(request(engine, 5, large))
        stream.abort()
        assert await read(engine.submit(request(engine, 3, Grammar("regex", "abc")))) == "abc"
        assert engine.num_queued == 0
