"""What is left out of a request where the server is lenient, and what asks for nothing anyway."""

from pathlib import Path
from typing import Any

import pytest

from orcinus.server.requests.foreign import FOREIGN
from orcinus.server.requests.left_out import HEADER, LeftOut, collecting_left_out, leave_out, may_leave_out
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, serving, user

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [user("x")]},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [user("x")], "max_tokens": 5},
}
NEUTRAL: dict[str, Any] = {
    "typical_p": 1.0,
    "tfs_z": 1,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "xtc_probability": 0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_beams": 1,
    "use_beam_search": False,
    "do_sample": True,
    "repeat_penalty": 1.0,
    "n_predict": -1,
    "guided_json": {},
    "guided_decoding_backend": "xgrammar",
    "grammar": "",
    "suffix": "",
    "lora": [],
    "mm_processor_kwargs": {},
    "documents": [],
    "enable_search": False,
    "cache_prompt": True,
    "detokenize": True,
    "separate_reasoning": True,
    "truncation_side": "left",
    "request_id": "r1",
    "think": False,
    "extra_headers": {},
    "extra_body": {},
    "options": {},
    "trace": {},
    "debug": False,
    "litellm_metadata": {},
    "thinking_config": {},
    "session_id": "s1",
    "chat_id": "c1",
    "tool_stream": True,
    "reasoning_split": True,
    "caching": True,
    "drop_params": True,
    "allowed_openai_params": ["tools"],
    "models": [],
    "route": "",
    "provider": {},
    "transforms": [],
}


@pytest.fixture
async def lenient(tmp_path: Path) -> Any:
    async with serving(tmp_path, FakeExecutor(says("Hello")), lenient=True) as running:
        yield running


@pytest.mark.parametrize("path", BODIES)
async def test_neutral_values_of_what_others_have_are_taken(served: Serving, path: str) -> None:
    response = await served.post(path, **BODIES[path], **NEUTRAL)
    assert response.status_code == 200, response.text
    assert HEADER not in response.headers
    others: dict[str, Any] = {"echo": False} if path != "/v1/completions" else {}
    others |= {"best_of": 1, "n": 1, "parallel_tool_calls": True, "tools": [], "suffix": ""}
    if path in ("/v1/responses", "/v1/messages"):
        others |= {"logprobs": False, "response_format": {"type": "text"}, "return_token_ids": False}
    assert (await served.post(path, **BODIES[path], **others)).status_code == 200


@pytest.mark.parametrize("path", BODIES)
async def test_other_values_are_refused_by_name(served: Serving, path: str) -> None:
    for name in FOREIGN:
        response = await served.post(path, **BODIES[path], **{name: 7.5})
        assert response.status_code == 400, name
        assert f"{name} is not supported: " in response.json()["error"]["message"]


@pytest.mark.parametrize("path", BODIES)
async def test_routing_that_one_model_satisfies_is_left_out_and_named(served: Serving, path: str) -> None:
    routing = {"route": "fallback", "provider": {"sort": "price"}, "transforms": ["middle-out"]}
    name = served.settings.model_names[0]
    for models in ({"models": ["other", name]}, {"model": "other", "models": [name]}, {"model": name, "models": ["x"]}):
        response = await served.post(path, **BODIES[path], **routing, **models)
        assert response.status_code == 200, response.text
        assert response.headers[HEADER] == "route, provider, transforms, models"
        assert response.json()["model"] == name
    for models in ({"models": ["other"]}, {"model": "other", "models": ["another"]}):
        assert (await served.post(path, **BODIES[path], **models)).status_code == 404
    assert (await served.post(path, **BODIES[path], models="other")).status_code == 400


@pytest.mark.parametrize("path", BODIES)
async def test_where_the_contents_of_an_object_belong_is_said(served: Serving, path: str) -> None:
    for name, words in (("options", "--max-model-len"), ("extra_body", "into the body itself")):
        response = await served.post(path, **BODIES[path], **{name: {"num_ctx": 4096}})
        assert words in response.json()["error"]["message"]


@pytest.mark.parametrize(("name", "value"), [("do_sample", False), ("typical_p", True), ("detokenize", False)])
async def test_what_would_change_the_output_is_not_neutral(served: Serving, name: str, value: Any) -> None:
    assert (await served.post("/v1/completions", prompt="x", **{name: value})).status_code == 400


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_not_known_is_left_out_where_the_server_is_lenient(
    lenient: Serving, served: Serving, path: str
) -> None:
    unknown = {"temprature": 1, "a b\n": [1]}
    for is_streamed in (False, True):
        response = await lenient.post(path, **BODIES[path], **unknown, stream=is_streamed)
        assert response.status_code == 200, response.text
        assert response.headers[HEADER] == "temprature, a%20b%0A"
    assert HEADER not in (await lenient.post(path, **BODIES[path])).headers
    assert (await served.post(path, **BODIES[path], **unknown)).status_code == 400


@pytest.mark.parametrize(
    ("path", "more", "place"),
    [
        ("/v1/completions", {"stream": True, "stream_options": {"include_use": True}}, "stream_options.include_use"),
        ("/v1/responses", {"reasoning": {"depth": 1}}, "reasoning.depth"),
        ("/v1/messages", {"thinking": {"type": "enabled", "style": 1}}, "thinking.style"),
        ("/v1/messages", {"messages": [{**user("x"), "id": 1}]}, "messages[0].id"),
        ("/v1/messages/count_tokens", {"messages": [user("x")], "beta": 1}, "beta"),
        ("/tokenize", {"prompt": "x", "more": 1}, "more"),
    ],
)
async def test_what_is_not_known_further_inside_is_left_out_too(
    lenient: Serving, path: str, more: dict[str, Any], place: str
) -> None:
    response = await lenient.post(path, **{**BODIES.get(path, {}), **more})
    assert response.status_code == 200, response.text
    assert response.headers[HEADER] == place


async def test_what_is_known_and_refused_stays_so(lenient: Serving) -> None:
    for body in ({"typical_p": 0.5}, {"temperature": 9}, {"n": "2"}):
        assert (await lenient.post("/v1/completions", prompt="x", **body)).status_code == 400


def test_the_header_is_short_and_safe() -> None:
    assert LeftOut().header() is None
    assert LeftOut(places=["a\r\nb: c", "é" * 3]).header() == "a%0D%0Ab%3A%20c, %C3%A9%C3%A9%C3%A9"
    many = LeftOut(places=["x" * 500] * 30).header()
    assert many is not None
    assert many.endswith(", and 10 more")
    assert len(many) < 2200


def test_what_nobody_collects_is_read_strictly() -> None:
    leave_out("a")
    assert not may_leave_out("b")
    with collecting_left_out(is_lenient=False) as collected:
        leave_out("c")
        assert not may_leave_out("d")
    assert collected.places == ["c"]
