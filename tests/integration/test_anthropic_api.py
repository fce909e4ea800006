"""Anthropic's Messages API on a real server process with the demo model.

What the model says is not the point, so nothing depends on its wording, but for one question that it must know.
"""

from typing import Any

import httpx
import psutil
import pytest

from tests.message_events import named_events, put_together
from tests.server_process import ServerProcess, StartServer

pytestmark = pytest.mark.slow  # the contract, and clients of others, are checked elsewhere, too

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"model": "orcinus-demo", "max_tokens": 64, "temperature": 0, "messages": QUESTION}
WEATHER = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def post(server: ServerProcess, path: str = "/v1/messages", **body: Any) -> httpx.Response:
    headers = {"anthropic-version": "2023-06-01", "x-api-key": "none"}
    return server.http.post(path, json={**GREEDY, **body}, headers=headers, timeout=60)


def ask(server: ServerProcess, **body: Any) -> dict[str, Any]:
    response = post(server, **body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def num_input_tokens(answer: dict[str, Any]) -> int:
    usage: dict[str, int] = answer["usage"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_the_demo_model_knows_the_capital_of_france(server: ServerProcess) -> None:
    answer = ask(server)
    [block] = answer["content"]
    assert "Paris" in block["text"]
    assert answer["stop_reason"] == "end_turn"


@pytest.mark.parametrize("body", [{}, {"max_tokens": 3}, {"tools": [WEATHER], "tool_choice": {"type": "any"}}])
def test_a_stream_is_the_whole_message_in_parts(server: ServerProcess, body: dict[str, Any]) -> None:
    whole = ask(server, **body)
    streamed = put_together(named_events(post(server, **body, stream=True).text))
    for answer in (whole, streamed):
        for block in answer["content"]:
            block.pop("id", None)
    assert streamed["content"] == whole["content"]
    assert streamed["stop_reason"] == whole["stop_reason"]
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert num_input_tokens(streamed) == num_input_tokens(whole)


def test_a_tool_that_must_be_used_is_used_and_its_result_can_be_sent(server: ServerProcess) -> None:
    tools = {"tools": [WEATHER]}
    call = ask(server, **tools, tool_choice={"type": "tool", "name": "get_weather"})
    assert call["stop_reason"] == "tool_use"
    [use] = [block for block in call["content"] if block["type"] == "tool_use"]
    assert use["input"] in ({"city": "Paris"}, {"city": "Rome"})
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "sunny, 21 degrees"}
    turns = [*QUESTION, {"role": "assistant", "content": call["content"]}, {"role": "user", "content": [result]}]
    answer = ask(server, messages=turns, **tools)
    counted = post(server, "/v1/messages/count_tokens", messages=turns, **tools).json()
    assert counted == {"input_tokens": num_input_tokens(answer)}


def test_a_text_has_the_form_that_was_asked_for(server: ServerProcess) -> None:
    form = {"type": "json_schema", "schema": {"enum": ["Paris", "Rome"]}}
    [block] = ask(server, output_config={"format": form})["content"]
    assert block["text"].strip() in ('"Paris"', '"Rome"')


def test_a_begun_answer_is_continued(server: ServerProcess) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "The capital of"}]
    [block] = ask(server, messages=begun)["content"]
    assert "capital of" not in block["text"]
    assert "Paris" in block["text"]


def test_a_killed_engine_that_may_not_be_replaced_ends_a_stream_with_an_error(start_server: StartServer) -> None:
    server = start_server("--max-engine-restarts", "0")
    body = {**GREEDY, "stream": True, "max_tokens": 1900, "ignore_eos": True}
    with server.http.stream("POST", "/v1/messages", json=body, timeout=60) as response:
        chunks = response.iter_text()
        text = next(chunks)
        [engine] = psutil.Process(server.pid).children()
        engine.kill()
        *events, last = named_events(text + "".join(chunks))
    assert events[0]["type"] == "message_start"
    assert "message_stop" not in {event["type"] for event in events}
    assert (last["type"], last["error"]["type"]) == ("error", "overloaded_error")
    assert server.wait() == 1
