"""POST /v1/responses, without anything stored."""

import json
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.conformance.api import Api, talk
from tests.conformance.registry import row
from tests.conformance.rows.streaming import doomed_stream
from tests.conformance.rows.structured import COUNTRY, SCHEMA
from tests.conformance.rows.tools import QUESTION, RESULT, WEATHER
from tests.conformance.schema import check_type
from tests.conformance.sse import read_named

FRANCE = "What is the capital of France?"
TOOL: dict[str, Any] = {"type": "function", "strict": True, **WEATHER["function"]}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def text_of(response: dict[str, Any]) -> str:
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


def events_of(api: Api, given: Any = FRANCE, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, each of a type that the SDK knows and with all that it asks for."""
    return checked_events(api.stream("/v1/responses", {"input": given, "temperature": 0, **body}))


def checked_events(stream: bytes) -> list[dict[str, Any]]:
    events = read_named(stream)
    for event in events:
        EVENT.validate_python(event, strict=True)
        if "response" in event:
            check_type(Response, event["response"])
    return events


@row("responses_api.text", "A text is answered with a completed response of one message")
def text(api: Api) -> None:
    response = api.respond(FRANCE)
    assert (response["object"], response["status"], response["error"]) == ("response", "completed", None)
    [item] = response["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert "Paris" in text_of(response)


@row("responses_api.input", "Input is a text or a list of items; instructions go before it as a system message")
def inputs(api: Api) -> None:
    parts = [{"role": "user", "content": [{"type": "input_text", "text": FRANCE}]}]
    for given in (talk(FRANCE), parts, [{"type": "message", **talk(FRANCE)[0]}]):
        assert text_of(api.respond(given)) == text_of(api.respond(FRANCE))
    counted = [api.respond(FRANCE, **body)["usage"]["input_tokens"] for body in ({}, {"instructions": "Be brief."})]
    assert counted[1] > counted[0]


@row("responses_api.input_tokens", "The tokens of an input can be counted without an answer")
def input_tokens(api: Api) -> None:
    for given, more in ((FRANCE, {}), (talk(FRANCE), {"instructions": "Be brief.", "tools": [TOOL]})):
        counted = api.ask("POST", "/v1/responses/input_tokens", {"input": given, **more})
        used = api.respond(given, **more)["usage"]["input_tokens"]
        assert counted == {"object": "response.input_tokens", "input_tokens": used}


@row("responses_api.same", "It says what chat completions say to the same messages")
def same(api: Api) -> None:
    assert text_of(api.respond(FRANCE)) == api.chat(FRANCE)["choices"][0]["message"]["content"]


@row("responses_api.usage", "Usage has input, output and total tokens with their details")
def usage(api: Api) -> None:
    counted = api.respond(FRANCE)["usage"]
    chat = api.chat(FRANCE)["usage"]
    assert counted["total_tokens"] == counted["input_tokens"] + counted["output_tokens"]
    assert (counted["input_tokens"], counted["output_tokens"]) == (chat["prompt_tokens"], chat["completion_tokens"])
    assert set(counted) >= {"input_tokens_details", "output_tokens_details"}


@row("responses_api.incomplete", "`max_output_tokens` makes it `incomplete`, for the reason `max_output_tokens`")
def incomplete(api: Api) -> None:
    response = api.respond(FRANCE, max_output_tokens=2)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


@row("responses_api.stream", "A stream is the named events of the SDK, numbered, that end with the whole response")
def streamed(api: Api) -> None:
    events = events_of(api)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert deltas == text_of(events[-1]["response"]) == text_of(api.respond())


@row("responses_api.items", "Items and parts of a stream are added before their deltas and done after them")
def items(api: Api) -> None:
    kinds = list(dict.fromkeys(event["type"] for event in events_of(api)))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


@row("responses_api.tools", "A tool is called with a `function_call` item, and its output makes the answer")
def tools(api: Api) -> None:
    asked = api.respond(QUESTION, tools=[TOOL])
    [call] = [item for item in asked["output"] if item["type"] == "function_call"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": RESULT}
    assert "sunny" in text_of(api.respond([*talk(QUESTION), *asked["output"], result], tools=[TOOL]))


@row("responses_api.tool_stream", "The arguments of a streamed call come in deltas that join to the whole")
def tool_stream(api: Api) -> None:
    events = events_of(api, QUESTION, tools=[TOOL])
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    [done] = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert "".join(deltas) == done["arguments"]
    assert json.loads(done["arguments"]) == {"city": "Paris"}


@row("responses_api.structured", "`text.format` with a schema gives JSON that matches it")
def structured(api: Api) -> None:
    form = {"format": {"type": "json_schema", "name": "country", "schema": SCHEMA, "strict": True}}
    assert json.loads(text_of(api.respond(COUNTRY, text=form))) == {"country": "France", "capital": "Paris"}


@row(
    "responses_api.deadline", "A deadline that passes within a stream is `response.failed` with the error, then `error`"
)
def deadline(api: Api) -> None:
    body = {"input": FRANCE, "max_output_tokens": 1900, "ignore_eos": True}
    *_, failed, error = checked_events(doomed_stream(api, "/v1/responses", body))
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["message"] == error["message"]
    assert (error["type"], error["code"]) == ("error", "timeout")


@row("responses_api.stateless", "What would need a store is refused by name; `store` itself is accepted")
def stateless(api: Api) -> None:
    for body in ({"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"background": True}):
        [name] = body
        assert api.refuse("/v1/responses", {"input": "x", **body})["param"] == name
    api.respond("Hi", store=False)


@row("responses_api.refused", "Wrong input, an unknown parameter or model are errors of the usual shape")
def refused(api: Api) -> None:
    assert (api.refuse("/v1/responses", {"input": 5})["param"] or "").startswith("input")
    assert api.refuse("/v1/responses", {"input": "x", "temprature": 1})["param"] == "temprature"
    assert api.refuse("/v1/responses", {"input": "x", "temperature": 9})["param"] == "temperature"
    assert api.refuse("/v1/responses", {"input": "x", "model": "gpt-5"}, 404)["code"] == "model_not_found"
