"""A model that never stops thinking, and budgets: an answer follows, whatever the API, the sampling and the form."""

import asyncio
import json
import string
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import pytest_asyncio

from orcinus import LLM, SamplingParams
from orcinus.config.settings import load_settings
from orcinus.engine.frontend.async_engine import AsyncEngine
from orcinus.engine.frontend.replica import EngineSpec
from orcinus.engine.messages import AddRequest, StepOutputs, StepPlan, StepResult
from orcinus.engine.models.loader import multiplies_bfloat16
from orcinus.engine.outputs import RequestOutput
from orcinus.engine.sampling_params import Grammar, Thinking
from orcinus.engine.startup.build import build_executor
from orcinus.engine.supervision.transport import InProcessTransport
from orcinus.server.app import create_app
from tests.integration.step_gate import StepGate
from tests.integration.thinking_model import CLOSE, OPEN, build_thinking_model
from tests.integration.tiny_models import EOS_TOKEN_ID
from tests.message_events import named_events, put_together
from tests.server_process import GATED, PATIENCE_S, ServerProcess, until

BUDGET, LENGTH = 20, 60
FORCED_TEXT = "\n</think>\n\n"
NUM_FORCED = 4
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
ENDLESS = {CLOSE: -100.0, OPEN: -100.0, EOS_TOKEN_ID: -100.0}  # biases
HI = [{"role": "user", "content": "hi"}]
USAGE = {"include_usage": True}
TOKENS = "orcinus_generation_tokens_total"
SLOW_STEP_S = 3.0
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_thinking_model(tmp_path_factory.mktemp("models") / "thinker")


# --- the engine -------------------------------------------------------------------------------------------


def offline(model: Path, **options: Any) -> LLM:
    chosen: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 8, "kv_cache_memory": "8MiB", "seed": 0, **options}
    return LLM(str(model), device="cpu", **chosen)


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return offline(model)


@pytest.fixture(scope="module")
def letters(llm: LLM) -> list[int]:
    return [llm.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in string.ascii_letters]


@pytest.fixture(scope="module")
def forced(llm: LLM) -> list[int]:
    ids = llm.tokenizer.encode(FORCED_TEXT, add_special_tokens=False)
    assert len(ids) == NUM_FORCED
    return ids


def thinking(forced: Sequence[int], budget: int | None = BUDGET, **fields: Any) -> Thinking:
    return Thinking(end=(CLOSE,), budget=budget, forced=tuple(forced), **fields)


def run(llm: LLM, params: Sequence[SamplingParams]) -> list[RequestOutput]:
    prompts = [f"Think {number}: " for number in range(len(params))]
    return [output for result in llm.generate(prompts, params) for output in result.outputs]


PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.0, "seed": 3},
    "several": {"temperature": 1.0, "seed": 4, "n": 3},
    "penalties": {"temperature": 0, "presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "log-probabilities": {"temperature": 0.7, "seed": 5, "logprobs": 2},
    "bad words": {"temperature": 1.0, "seed": 6, "bad_words_token_ids": ((CLOSE,), (100,), (7, 8))},
    "truncated": {"temperature": 1.0, "seed": 7, "top_k": 5, "top_p": 0.8, "min_p": 0.05},
    "long": {"temperature": 1.0, "seed": 8, "min_tokens": LENGTH, "ignore_eos": True},
    "stops": {"temperature": 1.0, "seed": 9, "stop": ("zzzzzz",), "stop_token_ids": (OPEN,)},
}


def budgeted(forced: Sequence[int], budget: int | None = BUDGET) -> list[SamplingParams]:
    return [
        SamplingParams(max_tokens=LENGTH, logit_bias=ENDLESS, thinking=thinking(forced, budget), **params)
        for params in PARAMS.values()
    ]


def test_a_budget_changes_nothing_before_it_is_used_up_and_then_ends_the_thought(llm: LLM, forced: list[int]) -> None:
    held, free = run(llm, budgeted(forced)), run(llm, budgeted(forced, None))
    for mine, other in zip(held, free, strict=True):
        assert mine.token_ids[:BUDGET] == other.token_ids[:BUDGET]
        assert mine.token_ids[BUDGET : BUDGET + NUM_FORCED] == forced
        assert len(mine.token_ids) == LENGTH
        assert mine.finish_reason == "length"
        assert CLOSE not in other.token_ids


def test_a_request_has_the_same_tokens_alone_and_among_others(llm: LLM, forced: list[int]) -> None:
    params = budgeted(forced)
    together = [output.token_ids for output in run(llm, params)]
    alone = [
        output.token_ids
        for number, own in enumerate(params)
        for output in llm.generate([f"Think {number}: "], [own])[0].outputs
    ]
    assert alone == together


def test_forced_tokens_have_the_models_own_log_probabilities(llm: LLM, forced: list[int]) -> None:
    [output] = run(llm, [SamplingParams(max_tokens=LENGTH, temperature=0, logprobs=1, thinking=thinking(forced))])
    text = [*llm.tokenizer.encode("Think 0: "), *output.token_ids]
    [scored] = llm.generate([text], [SamplingParams(max_tokens=1, prompt_logprobs=0)])[0].outputs
    told = [entry.logprob for entry in output.logprobs or []]
    assert scored.prompt_logprobs is not None
    expected = [entry.logprob for entry in scored.prompt_logprobs if entry is not None][-len(told) :]
    assert told == pytest.approx(expected, abs=1e-3)
    assert len(told) == LENGTH


@pytest.mark.parametrize("max_tokens", [1, 4, 5, 8, 24, 31])
def test_an_answer_follows_where_max_tokens_are_near(llm: LLM, forced: list[int], max_tokens: int) -> None:
    [output] = run(llm, [SamplingParams(max_tokens=max_tokens, logit_bias=ENDLESS, thinking=thinking(forced, 500))])
    assert len(output.token_ids) == max_tokens
    end = max(max_tokens - max(max_tokens // 4, 1), NUM_FORCED)
    assert output.token_ids[end - NUM_FORCED : end] == forced[:max_tokens]


def test_the_end_of_the_context_is_as_near_as_max_tokens(llm: LLM, forced: list[int]) -> None:
    prompt = [5] * (llm.info.max_model_len - 40)
    params = SamplingParams(max_tokens=None, logit_bias=ENDLESS, thinking=thinking(forced, 500))
    [output] = llm.generate([prompt], [params])[0].outputs
    assert len(output.token_ids) == 40
    assert output.token_ids[26:30] == forced


def test_a_budget_of_nothing_ends_the_thought_at_once_or_has_none_begun(llm: LLM, forced: list[int]) -> None:
    eager = {OPEN: 100.0}
    opened = SamplingParams(max_tokens=9, temperature=0, thinking=thinking(forced, 0))
    begun = SamplingParams(max_tokens=30, temperature=0, logit_bias=eager, thinking=thinking(forced, 5, start=OPEN))
    banned = SamplingParams(max_tokens=9, temperature=0, logit_bias=eager, thinking=thinking(forced, 0, start=OPEN))
    outputs = run(llm, [opened, begun, banned])
    assert outputs[0].token_ids[:NUM_FORCED] == forced
    assert outputs[1].token_ids[:10] == [OPEN] * 6 + forced
    assert outputs[2].token_ids[0] != OPEN
    assert outputs[2].token_ids[1] == OPEN


def test_a_grammar_after_the_thought_is_kept(llm: LLM, forced: list[int]) -> None:
    grammar = Grammar("json_schema", json.dumps(SCHEMA), thinking=thinking(forced))
    params = SamplingParams(max_tokens=120, temperature=1.0, seed=1, n=4, logit_bias=ENDLESS, grammar=grammar)
    for output in run(llm, [params]):
        assert output.token_ids[BUDGET : BUDGET + NUM_FORCED] == forced
        thought, _, answer = output.text.partition("</think>")
        jsonschema.validate(json.loads(answer), SCHEMA)
        assert thought


def preempting(model: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LLM, list[int]]:
    """Return an engine with fewer blocks than requests come to, and where it tells of preemptions."""
    small = offline(model, max_num_seqs=6, kv_cache_memory="128KiB", max_model_len=128, block_size=16)
    counts, step = [], small._core.step

    def counting_step() -> StepOutputs:
        outputs = step()
        counts.append(outputs.stats.num_preemptions)
        return outputs

    monkeypatch.setattr(small._core, "step", counting_step)
    return small, counts


def test_a_preempted_request_goes_on_as_if_nothing_had_been(
    llm: LLM, model: Path, forced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, preemptions = preempting(model, monkeypatch)
    params = SamplingParams(max_tokens=90, seed=3, n=8, logit_bias=ENDLESS, thinking=thinking(forced, 50))
    assert [o.token_ids for o in run(small, [params])] == [o.token_ids for o in run(llm, [params])]
    assert sum(preemptions) > 0


@pytest.mark.parametrize("grammar", [None, Grammar("json_schema", json.dumps(SCHEMA))])
def test_a_request_goes_on_in_another_engine_after_each_of_its_tokens(
    llm: LLM, forced: list[int], grammar: Grammar | None
) -> None:
    own = thinking(forced, 6)
    fields: dict[str, Any] = (
        {"thinking": own} if grammar is None else {"grammar": Grammar(grammar.kind, grammar.source, own)}
    )
    params = SamplingParams(max_tokens=24, temperature=1.0, seed=8, logit_bias=ENDLESS, **fields)
    prompt = llm.tokenizer.encode("Think: ")

    def generated(requests: Sequence[AddRequest]) -> dict[str, list[int]]:
        taken = {request.request_id: list(request.output_token_ids) for request in requests}
        for request in requests:
            llm._core.add_request(request)
        while llm._core.has_work:
            for delta in llm._core.step().deltas:
                assert delta.error is None, delta.error
                taken[delta.request_id] += delta.token_ids
        return taken

    whole = generated([AddRequest("whole", prompt, params, 0.0)])["whole"]
    assert whole[6:10] == forced
    begun = [
        AddRequest(f"{count}", prompt, params, 0.0, output_token_ids=whole[:count], is_steered=False)
        for count in range(len(whole))
    ]
    if grammar is not None:
        begun = begun[: 6 + NUM_FORCED + 1]  # before the limit leads it to its end
    assert {tuple(taken) for taken in generated(begun).values()} == {tuple(whole)}


def test_steps_run_ahead_but_for_those_at_the_end_of_a_budget(
    llm: LLM, model: Path, forced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device that works while the host goes on: it must not be planned what follows a token not known yet."""
    ahead = offline(model)
    monkeypatch.setattr(ahead._core._executor, "runs_ahead", True)
    places: list[bool] = []
    launch = ahead._core._executor.launch

    def noting(plan: StepPlan) -> Callable[[], StepResult]:
        [request] = ahead._core.scheduler._slots.running
        places.append(request.num_in_flight > 1)
        return launch(plan)

    for budget in (0, 1, 2, 7, LENGTH):
        for own in (thinking(forced, budget), thinking(forced, budget, start=OPEN)):
            for extra in ({"temperature": 0}, {"seed": 4, "presence_penalty": 1.0}):
                bias = {CLOSE: -100.0, EOS_TOKEN_ID: -100.0} if own.start is None else {OPEN: 1.5}
                params = SamplingParams(max_tokens=30, logit_bias=bias, thinking=own, **extra)
                assert run(ahead, [params])[0].token_ids == run(llm, [params])[0].token_ids
    monkeypatch.setattr(ahead._core._executor, "launch", noting)
    params = SamplingParams(max_tokens=30, logit_bias=ENDLESS, thinking=thinking(forced, 10))
    assert run(ahead, [params])[0].token_ids[10:14] == forced
    is_ahead = [number for number, was_ahead in enumerate(places) if was_ahead]
    assert is_ahead == [number for number in range(1, 30) if number not in params.followed_places]


@pytest.mark.skipif(not multiplies_bfloat16(), reason="the processor has no bfloat16")
def test_a_budget_is_held_in_bfloat16(model: Path, forced: list[int]) -> None:
    for output in run(offline(model, dtype="bfloat16"), budgeted(forced)):
        assert output.token_ids[BUDGET : BUDGET + NUM_FORCED] == forced
        assert forced[1] not in output.token_ids[:BUDGET]


# --- the APIs ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(model: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = load_settings(
        model=str(model), device="cpu", dtype="float32", max_num_seqs=8, kv_cache_memory="8MiB", seed=0, **options
    )
    engine = AsyncEngine(
        settings, engines=[EngineSpec(settings.engine_config(), lambda: InProcessTransport(build_executor))]
    )
    engine.start()
    app = create_app(engine, settings)
    async with app.router.lifespan_context(app):
        await engine.wait_ready()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE_S) as client:
            yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(model: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(model) as running:
        yield running


module_loop = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Answer:
    """What every API says, in one form."""

    thought: str
    text: str
    num_tokens: int
    num_thought: int | None
    calls: list[Any]


def read_chat(body: dict[str, Any]) -> Answer:
    message = body["choices"][0]["message"]
    usage = body["usage"]
    calls = [json.loads(call["function"]["arguments"]) for call in message.get("tool_calls") or []]
    thought = message.get("reasoning_content") or ""
    num_thought = usage["completion_tokens_details"]["reasoning_tokens"]
    return Answer(thought, message["content"] or "", usage["completion_tokens"], num_thought, calls)


def read_response(body: dict[str, Any]) -> Answer:
    items = {item["type"]: item for item in body["output"]}
    thought = items["reasoning"]["content"][0]["text"] if "reasoning" in items else ""
    text = items["message"]["content"][0]["text"] if "message" in items else ""
    calls = [json.loads(item["arguments"]) for item in body["output"] if item["type"] == "function_call"]
    usage = body["usage"]
    return Answer(thought, text, usage["output_tokens"], usage["output_tokens_details"]["reasoning_tokens"], calls)


def read_message(body: dict[str, Any]) -> Answer:
    def joined(kind: str) -> str:
        return "".join(block[kind] for block in body["content"] if block["type"] == kind)

    calls = [block["input"] for block in body["content"] if block["type"] == "tool_use"]
    return Answer(joined("thinking"), joined("text"), body["usage"]["output_tokens"], None, calls)


def read_chat_stream(text: str) -> Answer:
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for delta in (choice["delta"] for chunk in chunks for choice in chunk["choices"]):
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls", []):
            if "id" in call:
                message["tool_calls"].append({"function": {"arguments": ""}})
            message["tool_calls"][-1]["function"]["arguments"] += call["function"]["arguments"]
    return read_chat({"choices": [{"message": message}], "usage": chunks[-1]["usage"]})


def read_response_stream(text: str) -> Answer:
    *_, last = (json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {"))
    return read_response(last["response"])


READERS = {
    "chat": (read_chat, read_chat_stream),
    "responses": (read_response, read_response_stream),
    "messages": (read_message, lambda text: read_message(put_together(named_events(text)))),
}


def body_of(api: str, letters: Sequence[int], **fields: Any) -> dict[str, Any]:
    """Return a request for letters alone: it cannot stop thinking by itself."""
    limit = "max_output_tokens" if api == "responses" else "max_tokens"
    prompt = {"input": "hi"} if api == "responses" else {"messages": HI}
    return {**prompt, limit: LENGTH, "allowed_token_ids": letters, **fields}


def named_budget(api: str, budget: int) -> dict[str, Any]:
    return (
        {"thinking": {"type": "enabled", "budget_tokens": budget}} if api == "messages" else {"thinking_budget": budget}
    )


async def ask(client: httpx.AsyncClient, api: str, body: dict[str, Any], *, stream: bool = False) -> Answer:
    options = {"stream_options": USAGE} if stream and api == "chat" else {}
    response = await client.post(PATHS[api], json={**body, "stream": stream, **options})
    assert response.status_code == 200, response.text
    read_whole, read_stream = READERS[api]
    return read_stream(response.text) if stream else read_whole(response.json())


@module_loop
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 5}])
@pytest.mark.parametrize("api", PATHS)
async def test_an_answer_follows_a_thought_that_would_not_end(
    client: httpx.AsyncClient, llm: LLM, letters: list[int], api: str, sampling: dict[str, Any]
) -> None:
    body = body_of(api, letters, **sampling, ignore_eos=True)
    endless = await ask(client, api, body)
    assert (endless.text, endless.num_tokens) == ("", LENGTH)
    whole = await ask(client, api, {**body, **named_budget(api, BUDGET)})
    assert whole.thought
    assert endless.thought.startswith(whole.thought)
    assert len(llm.tokenizer.encode(whole.thought, add_special_tokens=False)) <= BUDGET
    assert set(whole.thought + whole.text) <= set(string.ascii_letters)
    assert len(whole.text) >= LENGTH - BUDGET - NUM_FORCED
    assert whole.num_tokens == LENGTH
    assert whole.num_thought in (None, BUDGET + NUM_FORCED)
    assert await ask(client, api, {**body, **named_budget(api, BUDGET)}, stream=True) == whole


@module_loop
async def test_many_choices_and_many_requests_keep_to_the_same_budget(
    client: httpx.AsyncClient, letters: list[int]
) -> None:
    body = body_of("chat", letters, temperature=1.0, seed=2, thinking_budget=BUDGET, return_token_ids=True)
    several = (await client.post(PATHS["chat"], json={**body, "n": 3, "logprobs": True, "top_logprobs": 1})).json()
    assert several["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3 * (BUDGET + NUM_FORCED)
    for choice in several["choices"]:
        assert choice["token_ids"][BUDGET + 1] == CLOSE
        assert len(choice["logprobs"]["content"]) == LENGTH
    bodies = [body_of(api, letters, temperature=0, **named_budget(api, 5 + n)) for n in range(3) for api in PATHS]
    apis = [api for _ in range(3) for api in PATHS]
    together = await asyncio.gather(*(ask(client, api, body) for api, body in zip(apis, bodies, strict=True)))
    assert together == [await ask(client, api, body) for api, body in zip(apis, bodies, strict=True)]


@module_loop
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", PATHS)
async def test_a_schema_is_matched_after_the_thought(client: httpx.AsyncClient, api: str, stream: bool) -> None:
    forms: dict[str, dict[str, Any]] = {
        "chat": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        "responses": {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
        "messages": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    }
    body = body_of(api, [], temperature=1.0, seed=4, logit_bias=ENDLESS, **forms[api], **named_budget(api, BUDGET))
    del body["allowed_token_ids"]
    body |= {"max_output_tokens" if api == "responses" else "max_tokens": 150}
    answer = await ask(client, api, body, stream=stream)
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert answer.thought
    assert answer.num_thought in (None, BUDGET + NUM_FORCED)


@module_loop
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", PATHS)
async def test_a_strict_tool_is_called_after_the_thought(client: httpx.AsyncClient, api: str, stream: bool) -> None:
    function = {"name": "note", "strict": True, "parameters": SCHEMA}
    tools: dict[str, dict[str, Any]] = {
        "chat": {"tools": [{"type": "function", "function": function}], "tool_choice": "required"},
        "responses": {"tools": [{"type": "function", **function}], "tool_choice": "required"},
        "messages": {
            "tools": [{"name": "note", "strict": True, "input_schema": SCHEMA}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        },
    }
    body = body_of(api, [], temperature=1.0, seed=4, logit_bias=ENDLESS, **tools[api], **named_budget(api, BUDGET))
    del body["allowed_token_ids"]
    body |= {"max_output_tokens" if api == "responses" else "max_tokens": 300}
    answer = await ask(client, api, body, stream=stream)
    assert answer.calls
    for arguments in answer.calls:
        jsonschema.validate(arguments, SCHEMA)
    assert answer.thought


@module_loop
async def test_budgets_of_nothing_efforts_and_stop_strings(client: httpx.AsyncClient, letters: list[int]) -> None:
    body = body_of("chat", letters, temperature=0)
    for off in ({"thinking_budget": 0}, {"reasoning_effort": "none"}, {"thinking_budget": 0, "enable_thinking": True}):
        answer = await ask(client, "chat", {**body, **off})
        assert (answer.thought, answer.num_tokens) == ("", LENGTH)
        assert answer.text
    ended = await ask(client, "chat", {**body, "reasoning_effort": "low"})  # a budget beyond what max_tokens leave
    assert ended.num_thought == LENGTH - LENGTH // 4
    whole = await ask(client, "chat", {**body, "thinking_budget": BUDGET})
    stop = whole.text[4:7]
    assert (await ask(client, "chat", {**body, "thinking_budget": BUDGET, "stop": stop})).text in whole.text[:5]


@module_loop
async def test_a_thought_that_is_not_shown_is_counted(client: httpx.AsyncClient, letters: list[int]) -> None:
    body = body_of("chat", letters, temperature=0, thinking_budget=BUDGET, include_reasoning=False)
    for stream in (False, True):
        answer = await ask(client, "chat", body, stream=stream)
        assert (answer.thought, answer.num_thought) == ("", BUDGET + NUM_FORCED)


async def test_the_servers_default_is_held(model: Path, letters: list[int]) -> None:
    async with serving(model, default_thinking_budget=9) as client:
        answer = await ask(client, "chat", body_of("chat", letters, temperature=0))
        assert answer.num_thought == 9 + NUM_FORCED
        assert answer.text
        free = await ask(client, "chat", body_of("chat", letters, temperature=0, thinking_budget=-1))
        assert free.text == ""


# --- an engine that dies ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_engine_killed_in_the_midst_of_a_thought_makes_no_difference(
    model: Path, letters: list[int], tmp_path: Path
) -> None:
    gate = StepGate(tmp_path / "gate")
    flags = ("--model", str(model), "--dtype", "float32", "--max-num-seqs", "4", "--kv-cache-memory", "8MiB")
    server = ServerProcess(*flags, module=GATED, constants=gate.constants)
    try:
        until(lambda: server.get("/ready").status_code == 200, "it did not start")
        body = body_of("chat", letters, temperature=1.0, seed=3, thinking_budget=BUDGET, stream=True)
        whole = server.http.post(PATHS["chat"], json={**body, "stream": False}).json()
        twin, num_prompt_tokens = read_chat(whole), whole["usage"]["prompt_tokens"]
        assert twin.num_thought == BUDGET + NUM_FORCED
        for place in (5, BUDGET, BUDGET + 2):  # in the thought, and in what is forced after it
            until(lambda: server.get("/ready").status_code == 200, "no engine came up")
            num_tokens = server.metric(TOKENS) + place + 1
            gate.hold(num_prompt_tokens + place, step_s=SLOW_STEP_S)
            with server.http.stream("POST", PATHS["chat"], json={**body, "stream_options": USAGE}) as response:
                lines = response.iter_lines()
                read = [next(lines)]
                until(lambda wanted=num_tokens: server.metric(TOKENS) >= wanted, "no tokens came")  # type: ignore[misc]
                until(server.engine, "there was no engine").kill()
                until(lambda: server.get("/ready").status_code != 200, "/ready stayed green")
                gate.open()
                text = "\n".join([*read, *lines])
            assert read_chat_stream(text) == twin
        assert server.metric("orcinus_engine_restarts_total") >= 3
        assert server.metric("orcinus_requests_resumed_total") >= 3
    finally:
        server.close()
