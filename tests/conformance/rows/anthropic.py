"""POST /v1/messages, in the shapes of Anthropic's API."""

from typing import Any

import httpx

from tests.conformance.api import JSON, KEY, Api, talk
from tests.conformance.registry import row
from tests.conformance.rows.streaming import doomed_stream
from tests.conformance.rows.tools import QUESTION, RESULT, WEATHER
from tests.conformance.sse import read_json, read_named

FRANCE = "What is the capital of France?"
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": WEATHER["function"]["parameters"],
}
FIELDS = {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"}


def body_of(given: Any, **body: Any) -> dict[str, Any]:
    return {"model": "orcinus-demo", "max_tokens": 64, "temperature": 0, "messages": talk(given), **body}


def send(api: Api, given: Any = FRANCE, **body: Any) -> dict[str, Any]:
    message = api.ask("POST", "/v1/messages", body_of(given, **body))
    assert set(message) == FIELDS
    assert (message["type"], message["role"]) == ("message", "assistant")
    return message


def events_of(api: Api, given: Any = FRANCE, **body: Any) -> list[dict[str, Any]]:
    return read_named(api.stream("/v1/messages", body_of(given, **body)))


def refuse(api: Api, status: int = 400, **body: Any) -> dict[str, Any]:
    response = api.http.post("/v1/messages", json=body_of("x", **body))
    return error_of(response, status)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == JSON
    body = read_json(response.content)
    assert body["type"] == "error"
    assert set(body["error"]) >= {"type", "message"}
    error: dict[str, Any] = body["error"]
    return error


@row("anthropic.message", "A message has its fields, null or not, one block of text, and the usage")
def message(api: Api) -> None:
    answer = send(api)
    [block] = answer["content"]
    assert block["type"] == "text"
    assert block["text"] == api.chat(FRANCE)["choices"][0]["message"]["content"]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    counted = api.chat(FRANCE)["usage"]
    assert (
        answer["usage"]["input_tokens"] + answer["usage"].get("cache_read_input_tokens", 0) == counted["prompt_tokens"]
    )
    assert answer["usage"]["output_tokens"] == counted["completion_tokens"]


@row("anthropic.stop_reasons", "It stops with `max_tokens`, or with `stop_sequence` and which it was")
def stop_reasons(api: Api) -> None:
    assert send(api, max_tokens=2)["stop_reason"] == "max_tokens"
    stopped = send(api, stop_sequences=["Paris"])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "Paris")


@row("anthropic.system", "`system` is a text or blocks, and goes before the messages")
def system(api: Api) -> None:
    texts = ("Be brief.", [{"type": "text", "text": "Be brief."}])
    wanted = api.chat([{"role": "system", "content": "Be brief."}, *talk(FRANCE)])["choices"][0]["message"]["content"]
    for given in texts:
        assert send(api, system=given)["content"][0]["text"] == wanted


@row("anthropic.stream", "A stream is its named events in order, and joins to the whole message")
def streamed(api: Api) -> None:
    events = [event for event in events_of(api) if event["type"] != "ping"]
    kinds = list(dict.fromkeys(event["type"] for event in events))
    assert kinds == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text == send(api)["content"][0]["text"]
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    assert events[-2]["usage"]["output_tokens"] == send(api)["usage"]["output_tokens"]


@row("anthropic.tools", "A tool is used with a `tool_use` block, and its result makes the answer")
def tools(api: Api) -> None:
    asked = send(api, QUESTION, tools=[TOOL])
    assert asked["stop_reason"] == "tool_use"
    [use] = [block for block in asked["content"] if block["type"] == "tool_use"]
    assert (use["name"], use["input"]) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": RESULT}
    turns = [*talk(QUESTION), {"role": "assistant", "content": asked["content"]}, {"role": "user", "content": [result]}]
    assert "sunny" in send(api, turns, tools=[TOOL])["content"][0]["text"]


@row("anthropic.tool_stream", "The input of a streamed tool comes as parts of JSON text")
def tool_stream(api: Api) -> None:
    events = events_of(api, QUESTION, tools=[TOOL])
    [start] = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert (start["type"], start["name"], start["input"]) == ("tool_use", "get_weather", {})
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert read_json("".join(parts)) == {"city": "Paris"}


@row("anthropic.count_tokens", "count_tokens gives what the message's usage will say")
def count_tokens(api: Api) -> None:
    body = {"model": "orcinus-demo", "messages": talk(FRANCE)}
    assert api.ask("POST", "/v1/messages/count_tokens", body) == {
        "input_tokens": api.chat(FRANCE)["usage"]["prompt_tokens"]
    }


@row("anthropic.turns", "Messages of one role that follow one another are one turn of all their blocks")
def turns(api: Api) -> None:
    def count(*messages: Any) -> Any:
        body = {"model": "orcinus-demo", "messages": [{"role": "user", "content": content} for content in messages]}
        return api.ask("POST", "/v1/messages/count_tokens", body)

    assert count("a", "b") == count([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])


@row("anthropic.warm", "`max_tokens` of 0 generates nothing, and the prompt is cached")
def warm(api: Api) -> None:
    question = "Tell me about the sea. " * 20
    assert (warmed := send(api, question, max_tokens=0))["content"] == []
    assert (warmed["stop_reason"], warmed["usage"]["output_tokens"]) == ("max_tokens", 0)
    assert send(api, question, max_tokens=1)["usage"]["cache_read_input_tokens"] > 0


@row("anthropic.hosted_tools", "Tools that Anthropic runs are left out, and named in a header; long names are taken")
def hosted_tools(api: Api) -> None:
    tools = [{**TOOL, "name": "a" * 128}, {"type": "web_search_20250305", "name": "web_search"}]
    response = api.http.post("/v1/messages", json=body_of(FRANCE, tools=tools, max_tokens=1))
    assert response.status_code == 200
    assert response.headers["x-orcinus-left-out"] == "tools[1]=web_search_20250305"
    assert "1 to 128" in refuse(api, tools=[{**TOOL, "name": "a" * 129}])["message"]


@row("anthropic.errors", "Errors have Anthropic's shape and types")
def errors(api: Api) -> None:
    assert refuse(api, 404, model="gpt-5")["type"] == "not_found_error"
    wrong: list[dict[str, Any]] = [{"temperature": 9}, {"max_tokens": -1}, {"temprature": 1}, {"messages": []}]
    for body in wrong:
        assert refuse(api, **body)["type"] == "invalid_request_error", body


@row(
    "anthropic.deadline", "A deadline that passes within a stream ends it with an `error` event of type `timeout_error`"
)
def deadline(api: Api) -> None:
    body = body_of(FRANCE, max_tokens=1900, ignore_eos=True)
    *_, error = read_named(doomed_stream(api, "/v1/messages", body))
    assert (error["type"], error["error"]["type"]) == ("error", "timeout_error")


@row("anthropic.key", "The key comes as `x-api-key` or as a bearer token; without one it is 401 `authentication_error`")
def key(api: Api) -> None:
    assert send(api.small.api, max_tokens=1)
    http, body = api.small.process.http, body_of("Hi", max_tokens=1)
    assert http.post("/v1/messages", json=body, headers={"x-api-key": KEY}).status_code == 200
    for headers in ({}, {"x-api-key": "wrong"}):
        error = error_of(http.post("/v1/messages", json=body, headers=headers), 401)
        assert error["type"] == "authentication_error"
