"""What becomes of every parameter: supported ones reach the engine, ignored ones do nothing, the rest are refused."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.resources import Completions as LegacyCompletions
from openai.resources.chat import Completions as ChatCompletions

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import Grammar, SamplingParams
from orcinus.server.apis.chat.body import ChatBody, parse_chat
from orcinus.server.apis.completions.body import CompletionBody, parse_completion
from orcinus.server.requests.bodies import GenerationBody
from orcinus.server.requests.parameters import IGNORED, REFUSED, Endpoint, parameter_table
from tests.unit.engine.fakes import MESSAGE_END, FakeExecutor, says
from tests.unit.server.serving import Serving, error_of, in_one_loop, serving, user

GENERATION_BODIES: dict[Endpoint, type[GenerationBody]] = {"completions": CompletionBody, "chat": ChatBody}
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
OPENAI_PATHS = {**PATHS, "responses": "/v1/responses", "embeddings": "/v1/embeddings", "rerank": "/v1/rerank"}
BODIES: dict[str, dict[str, Any]] = {
    "completions": {"prompt": "x"},
    "chat": {"messages": [user("x")]},
    "responses": {"input": "x"},
    "embeddings": {"input": "x"},
    "rerank": {"query": "x", "documents": ["y"]},
}
CLIENT_ONLY = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}

EVERY_SAMPLING_FIELD: dict[str, Any] = {
    "n": 2,
    "min_tokens": 1,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 3,
    "min_p": 0.125,
    "presence_penalty": -1.5,
    "frequency_penalty": 1.5,
    "repetition_penalty": 1.25,
    "logit_bias": {"7": -100, "8": 1.5},
    "seed": 11,
    "stop": ["a", "b"],
    "stop_token_ids": [9],
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "prompt_logprobs": 2,
}


class Recorder:
    """An engine's `submit` that keeps what it was given and refuses it."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest) -> Any:
        self.requests.append(request)
        raise InvalidRequestError("recorded")


@pytest.fixture
def recorder(lasting: Serving, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(lasting.engine, "submit", recorder.submit)
    return recorder


@pytest.mark.parametrize(
    ("endpoint", "create"), [("completions", LegacyCompletions.create), ("chat", ChatCompletions.create)]
)
def test_every_parameter_of_the_sdk_has_a_decision(endpoint: Endpoint, create: Callable[..., Any]) -> None:
    decided = {row.name for row in parameter_table(GENERATION_BODIES) if endpoint in row.endpoints}
    assert set(inspect.signature(create).parameters) - CLIENT_ONLY <= decided


def test_no_parameter_has_two_decisions() -> None:
    rows = parameter_table(GENERATION_BODIES)
    decisions = [(row.name, endpoint) for row in rows for endpoint in row.endpoints]
    assert len(set(decisions)) == len(decisions)
    assert all(row.note for row in rows)


@in_one_loop
@pytest.mark.parametrize("endpoint", PATHS)
async def test_every_sampling_parameter_reaches_the_engine(lasting: Serving, recorder: Recorder, endpoint: str) -> None:
    logprobs = {"logprobs": True, "top_logprobs": 4} if endpoint == "chat" else {"logprobs": 4}
    limits = {"allowed_token_ids": [97, 98], "bad_words": ["ab"], "structured_outputs": {"choice": ["a", "b"]}}
    body = {**BODIES[endpoint], **EVERY_SAMPLING_FIELD, **logprobs, **limits, "max_tokens": 5}
    await lasting.post(PATHS[endpoint], **body, priority=-3, cache_salt="salt", timeout=250.5)
    [request] = recorder.requests
    wanted = {**EVERY_SAMPLING_FIELD, "logit_bias": {7: -100.0, 8: 1.5}, "stop": ("a", "b"), "stop_token_ids": (9,)}
    assert request.sampling == SamplingParams(
        **wanted,
        logprobs=4,
        max_tokens=5,
        allowed_token_ids=(97, 98),
        bad_words_token_ids=((97, 98), (32, 97, 98)),
        more_eos_token_ids=(MESSAGE_END,) if endpoint == "chat" else (),
        grammar=Grammar("choice", '["a", "b"]'),
    )
    others = {"logprobs", "max_tokens", "allowed_token_ids", "bad_words_token_ids", "grammar", "pooling", "thinking"}
    others |= {"more_eos_token_ids", "label_token_ids"}
    assert set(EVERY_SAMPLING_FIELD) | others == set(SamplingParams.__struct_fields__)
    assert (request.priority, request.cache_salt, request.timeout_s) == (-3, "salt", 250.5)


@in_one_loop
@pytest.mark.parametrize("endpoint", PATHS)
async def test_null_equals_absent_for_every_field(lasting: Serving, recorder: Recorder, endpoint: str) -> None:
    names = {row.name for row in parameter_table(GENERATION_BODIES) if endpoint in row.endpoints}
    nulls = dict.fromkeys(names - set(BODIES[endpoint]))
    await lasting.post(PATHS[endpoint], **BODIES[endpoint])
    await lasting.post(PATHS[endpoint], **BODIES[endpoint], **nulls)
    first, second = recorder.requests
    assert (first.sampling, first.prompts, first.priority) == (second.sampling, second.prompts, second.priority)


@in_one_loop
@pytest.mark.parametrize(
    ("endpoint", "name"),
    [(endpoint, name) for name, row in IGNORED.items() for endpoint in row.endpoints if endpoint in OPENAI_PATHS],
)
async def test_ignored_parameters_are_accepted_with_any_value(
    lasting: Serving, recorder: Recorder, endpoint: str, name: str
) -> None:
    for value in ("x", 5, {"a": [1]}, True):
        await lasting.post(OPENAI_PATHS[endpoint], **BODIES[endpoint], **{name: value})
    assert len(recorder.requests) == 4


@in_one_loop
@pytest.mark.parametrize(
    ("endpoint", "name"),
    [(endpoint, name) for name, row in REFUSED.items() for endpoint in row.endpoints if endpoint in OPENAI_PATHS],
)
async def test_refused_parameters_are_named(lasting: Serving, endpoint: str, name: str) -> None:
    error = error_of(await lasting.post(OPENAI_PATHS[endpoint], **BODIES[endpoint], **{name: [{"a": "b"}]}), 400)
    assert error["param"] == name
    assert name in error["message"]


@in_one_loop
@pytest.mark.parametrize(
    ("endpoint", "harmless"),
    [
        ("chat", {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]}),
        ("chat", {"function_call": "auto", "functions": [], "tool_choice": "auto", "parallel_tool_calls": False}),
        ("completions", {"best_of": 1, "suffix": "", "use_beam_search": False, "length_penalty": 1.0}),
        ("completions", {"best_of": 2, "n": 2}),
        ("rerank", {"rank_fields": ["text"], "relevant_spans": {"mode": "disabled"}, "max_chunks_per_doc": 10}),
        ("embeddings", {"normalize": True, "truncate": False, "embed_dtype": "float32"}),
    ],
)
async def test_refused_parameters_may_say_that_they_are_off(
    lasting: Serving, recorder: Recorder, endpoint: str, harmless: dict[str, Any]
) -> None:
    await lasting.post(OPENAI_PATHS[endpoint], **BODIES[endpoint], **harmless)
    assert len(recorder.requests) == 1


@in_one_loop
@pytest.mark.parametrize("endpoint", PATHS)
@pytest.mark.parametrize("name", ["temprature", "echoo", "x" * 5000, "", "__class__"])
async def test_an_unknown_parameter_is_refused_by_name(lasting: Serving, endpoint: str, name: str) -> None:
    error = error_of(await lasting.post(PATHS[endpoint], **BODIES[endpoint], **{name: 1}), 400)
    assert error["param"] == name[:100]
    assert "unknown parameter" in error["message"]


@in_one_loop
async def test_parameters_of_the_other_endpoint_are_unknown(lasting: Serving) -> None:
    assert error_of(await lasting.post(PATHS["chat"], **BODIES["chat"], prompt="x"), 400)["param"] == "prompt"
    assert error_of(await lasting.post(PATHS["completions"], **BODIES["completions"], messages=[]), 400)


@in_one_loop
@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("n", 129, "128"),
        ("n", 0, "1"),
        ("n", 10**8, "128"),
        ("temperature", 2.5, "2"),
        ("temperature", -0.1, "0"),
        ("top_p", -0.5, "0"),
        ("top_p", 1.5, "1"),
        ("top_k", -2, "-1"),
        ("min_p", 2, "1"),
        ("presence_penalty", 3, "2"),
        ("frequency_penalty", -3, "-2"),
        ("repetition_penalty", 0, "0"),
        ("max_tokens", -1, "0"),
        ("max_tokens", 10**12, "2147483647"),
        ("logprobs", 21, "20"),
        ("prompt_logprobs", 21, "20"),
        ("seed", 2**64, "18446744073709551615"),
        ("seed", -9_223_372_036_854_776_001, "-9223372036854776000"),
        ("stop", ["a", "b", "c", "d", "e"], "4"),
        ("stop", ["a"] * 10_000, "4"),
        ("stop", "x" * 1025, "1024"),
        ("stop_token_ids", [1] * 257, "256"),
        ("logit_bias", {str(i): 1 for i in range(1025)}, "1024"),
        ("logit_bias", {"1": 101}, "100"),
        ("timeout", 0, "0"),
        ("priority", 2**40, "2147483647"),
        ("cache_salt", "x" * 257, "256"),
        ("truncate_prompt_tokens", -2, "-1"),
        ("min_tokens", 17, "16"),
    ],
)
async def test_a_value_out_of_bounds_is_refused_with_the_bound(
    lasting: Serving, name: str, value: Any, limit: str
) -> None:
    error = error_of(await lasting.post("/v1/completions", prompt="x", **{name: value}), 400)
    assert error["param"] == name
    assert limit in error["message"]


@in_one_loop
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", "2"),
        ("n", True),
        ("n", 1.5),
        ("temperature", "0.5"),
        ("temperature", True),
        ("stream", "true"),
        ("stream", 1),
        ("echo", "yes"),
        ("seed", "7"),
        ("stop", 5),
        ("stop", [5]),
        ("stop_token_ids", ["5"]),
        ("stop_token_ids", 5),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": "2"}),
        ("logit_bias", [1]),
        ("logit_bias", {"9" * 5000: 1}),
        ("logprobs", True),
        ("model", 5),
        ("model", ["fake-model"]),
        ("stream_options", {"include_usage": "yes"}),
        ("stream_options", {"include_use": True}),
        ("stream_options", []),
    ],
)
async def test_a_value_of_the_wrong_type_is_refused_by_name(lasting: Serving, name: str, value: Any) -> None:
    error = error_of(await lasting.post("/v1/completions", prompt="x", **{name: value}), 400)
    assert error["param"].startswith(name)
    assert len(error["message"]) < 500


@in_one_loop
async def test_ids_outside_the_vocabulary_are_refused(lasting: Serving) -> None:
    for name, value in (("stop_token_ids", [300]), ("logit_bias", {"300": 1})):
        error = error_of(await lasting.post("/v1/completions", prompt="x", **{name: value}), 400)
        assert error["param"] == name
        assert "258" in error["message"]


async def test_reasoning_effort_and_kwargs_reach_the_template(tmp_path: Path) -> None:
    template = "{{ messages[0].content }} {{ reasoning_effort }} {{ style }}"
    async with serving(tmp_path, FakeExecutor(says("x")), template=template) as served:
        answer = await served.chat(
            "a", reasoning_effort="low", chat_template_kwargs={"style": "dry"}, return_token_ids=True
        )
        assert bytes(answer["prompt_token_ids"]) == b"a low dry"


@pytest.mark.parametrize("parse", [parse_completion, parse_chat])
def test_schemas_of_bodies_give_their_bounds(parse: Callable[..., Any]) -> None:
    body = GENERATION_BODIES["chat" if parse is parse_chat else "completions"]
    properties = body.model_json_schema()["properties"]
    assert properties["n"]["maximum"] == 128
    assert properties["stop"]["anyOf"][1]["maxItems"] == 4
    assert all(field.get("description") for field in properties.values())
