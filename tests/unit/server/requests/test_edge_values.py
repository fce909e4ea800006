"""Values at the edge of what parameters take, and the ways in which chats say whether to think."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.requests.test_parameters import Recorder
from tests.unit.server.serving import Serving, answer_of, error_of, events_of, serving, user

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [user("x")]},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [user("x")], "max_tokens": 5},
}
TEMPLATE = "{{ enable_thinking }}|{{ thinking }}|{{ reasoning_effort }}|{{ messages[0].content }}"
THOUGHTS = "<think>\nHm.\n</think>\n\nYes."


@pytest.fixture
def recorder(served: Serving, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(served.engine, "submit", recorder.submit)
    return recorder


@pytest.mark.parametrize("path", BODIES)
async def test_a_nucleus_of_nothing_is_greedy(served: Serving, recorder: Recorder, path: str) -> None:
    await served.post(path, **BODIES[path], top_p=0, temperature=1)
    assert recorder.requests[0].sampling.is_greedy
    await served.post(path, **BODIES[path], top_p=0.5, temperature=1)
    assert not recorder.requests[1].sampling.is_greedy


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1, 9_223_372_036_854_776_000, -9_223_372_036_854_776_000])
async def test_seeds_are_taken_as_openais_document_has_them(served: Serving, path: str, seed: int) -> None:
    assert (await served.post(path, **BODIES[path], seed=seed)).status_code == 200
    assert (await served.post(path, **BODIES[path], seed=-9_223_372_036_854_776_001)).status_code == 400


async def test_what_codex_sends_is_taken(served: Serving) -> None:
    reasoning = {"effort": "medium", "summary": "auto", "context": "all_turns", "mode": "standard"}
    body = {"client_metadata": {"a": "b"}, "reasoning": reasoning, "prompt_cache_key": "k", "store": False}
    assert (await served.post("/v1/responses", input="x", **body)).status_code == 200
    error = error_of(await served.post("/v1/responses", input="x", reasoning={"context": "some"}), 400)
    assert error["param"] == "reasoning.context"


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"enable_thinking": False}, "False|False|"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "True|True|"),
        ({"thinking": {"type": "disabled"}}, "False|False|"),
        ({"reasoning": {"effort": "low"}}, "||low"),
        ({"reasoning": {"enabled": True, "max_tokens": 100}}, "True|True|"),
        ({"reasoning": {"effort": "none"}}, "False|False|none"),
        ({"reasoning_effort": "none"}, "False|False|none"),
        ({"reasoning": {"effort": "high"}, "reasoning_effort": "high", "enable_thinking": True}, "True|True|high"),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "False|True|"),
        ({"reasoning": {}}, "||"),
    ],
)
async def test_a_chat_says_in_any_of_these_ways_whether_to_think(
    tmp_path: Path, body: dict[str, Any], shown: str
) -> None:
    async with serving(tmp_path, FakeExecutor(says("x")), template=TEMPLATE) as served:
        answer = await served.chat("hi", **body, return_token_ids=True)
        assert bytes(answer["prompt_token_ids"]).decode() == f"{shown}|hi"


@pytest.mark.parametrize(
    ("body", "first", "second"),
    [
        ({"enable_thinking": True, "thinking": {"type": "disabled"}}, "enable_thinking", "thinking"),
        ({"thinking": {"type": "enabled"}, "reasoning": {"enabled": False}}, "thinking", "reasoning.enabled"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning_effort", "reasoning.effort"),
    ],
)
async def test_two_that_differ_are_refused(served: Serving, body: dict[str, Any], first: str, second: str) -> None:
    error = error_of(await served.post("/v1/chat/completions", messages=[user("x")], **body), 400)
    assert error["param"] == second
    assert f"{first} (" in error["message"]
    assert f"{second} (" in error["message"]


def said_of(response: httpx.Response, is_streamed: bool) -> tuple[str, str]:
    """The content and the reasoning of an answer."""
    if is_streamed:
        messages = [event["choices"][0]["delta"] for event in events_of(response.text)]
    else:
        messages = [answer_of(response)["choices"][0]["message"]]
    return tuple("".join(part.get(name) or "" for part in messages) for name in ("content", "reasoning_content"))  # type: ignore[return-value]


@pytest.mark.parametrize("body", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_reasoning_can_be_left_out_of_the_answer(tmp_path: Path, body: Any, is_streamed: bool) -> None:
    template = TEMPLATE + "{# <think> #}"
    async with serving(tmp_path, FakeExecutor(says(THOUGHTS)), template=template) as served:
        chat = {"messages": [user("x")], "stream": is_streamed}
        response = await served.post("/v1/chat/completions", **chat, **body)
        assert said_of(response, is_streamed) == ("Yes.", "")
        assert said_of(await served.post("/v1/chat/completions", **chat), is_streamed) == ("Yes.", "Hm.")


async def test_the_limit_is_called_as_the_client_calls_it(served: Serving) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        error = error_of(await served.post("/v1/chat/completions", messages=[user("x")], **{name: 1000}), 400)
        assert (error["param"], f"{name} 1000" in error["message"]) == (name, True)
    long = error_of(await served.post("/v1/responses", input="x" * 300, max_output_tokens=100), 400)
    assert (long["param"], "max_output_tokens 100" in long["message"]) == ("input", True)


async def test_the_words_of_a_template_are_left_as_they_are(tmp_path: Path) -> None:
    template = "{{ raise_exception('the prompt needs messages and max_tokens') }}"
    async with serving(tmp_path, FakeExecutor(says("x")), template=template) as served:
        error = error_of(await served.post("/v1/responses", input="x"), 400)
        assert error["param"] == "input"
        assert error["message"] == "the chat template refused the input: the prompt needs messages and max_tokens"


async def test_an_answer_of_no_tokens_is_greedy_in_the_openapi_document(served: Serving) -> None:
    schemas = answer_of(await served.client.get("/openapi.json"))["components"]["schemas"]
    assert schemas["ChatBody"]["properties"]["top_p"]["minimum"] == 0
