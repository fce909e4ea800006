"""POST /v1/responses: what is asked of the engine, the items that are answered, and the events that tell of them."""

import inspect
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai.resources.responses import Responses
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from orcinus.engine.errors import InvalidRequestError, RequestFailedError, RequestTimeoutError
from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.engine.sampling_params import Grammar
from orcinus.server.apis.responses.answer import ResponseGeneration, start_response
from orcinus.server.apis.responses.body import ResponseBody
from orcinus.server.apis.responses.input import read_input
from orcinus.server.apis.responses.output import OutputItems
from orcinus.server.apis.thinking import ThinkingCount
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.requests.parameters import parameter_table
from tests.unit.engine.fakes import CHAT_TEMPLATE, FakeExecutor, alphabet, echoes, says
from tests.unit.server.serving import Gate, Serving, answer_of, error_of, in_one_loop, serving

URL = "/v1/responses"
CLIENT_ONLY = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ROOMY = {"max_model_len": 1024}
THINKING_TEMPLATE = "{# <think> </think> <tool_call> #}{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
ADD = {
    "type": "function",
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": True,
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture
async def silent(tmp_path: Path) -> AsyncIterator[Serving]:
    """An app whose model never says anything, thinks, and has tools."""
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate), template=THINKING_TEMPLATE) as running:
        yield running
        gate.open()


async def respond(served: Serving, given: Any = "hi", **body: Any) -> dict[str, Any]:
    answer = answer_of(await served.post(URL, input=given, **body))
    Response.model_validate(answer, strict=True)
    return answer


async def stream(served: Serving, given: Any = "hi", **body: Any) -> list[dict[str, Any]]:
    response = await served.post(URL, input=given, stream=True, **body)
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a whole stream, whose framing, types and numbers are checked."""
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENTS.validate_python(event, strict=True)
        events.append(event)
    return events


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def text_of(answer: dict[str, Any]) -> str:
    """As the SDK's `output_text` does it."""
    return Response.model_validate(answer).output_text


async def generation(served: Serving, **body: Any) -> ResponseGeneration:
    return await start_response(served.app.state.context, {"input": "x", "stream": True, **body})


def said(text: str, finish_reason: Any = None, **details: Any) -> RequestOutput:
    return RequestOutput(index=0, text=text, token_ids=[*text.encode()], finish_reason=finish_reason, **details)


def encoded(generation: ResponseGeneration, *outputs: RequestOutput) -> bytes:
    return b"".join(event for output in outputs for event in generation.encode(output))


def streamed(generation: ResponseGeneration, *outputs: RequestOutput) -> list[dict[str, Any]]:
    events = encoded(generation, *outputs) + b"".join(generation.encode_end())
    return events_of(events.decode())


def without_ids(answer: dict[str, Any]) -> dict[str, Any]:
    items = [{**item, "id": None, "call_id": None} for item in answer["output"]]
    return {**answer, "id": None, "created_at": None, "completed_at": None, "output": items}


async def test_a_response_has_the_shape_that_the_sdk_declares(served: Serving) -> None:
    answer = await respond(served, model="fake-model", metadata={"key": "value"})
    assert answer["id"].startswith("resp_")
    assert (answer["object"], answer["status"], answer["model"]) == ("response", "completed", "fake-model")
    [item] = answer["output"]
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
    }
    assert (answer["metadata"], answer["store"]) == ({"key": "value"}, False)
    nulls = {"error", "incomplete_details", "instructions", "previous_response_id", "max_output_tokens"}
    assert {name for name in nulls if answer[name] is None} == nulls


async def test_usage_counts_what_went_in_and_came_out(served: Serving) -> None:
    prompt = len("user\nhi\nassistant\n") + 3  # special tokens
    usage = (await respond(served))["usage"]
    assert usage == {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 16, "cache_miss": {"reason": "new"}},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + 6,
    }
    again = (await respond(served))["usage"]
    assert again["input_tokens_details"] == {"cached_tokens": 16, "cache_write_tokens": 0}


async def test_the_parameters_are_given_back(served: Serving) -> None:
    asked = {
        "instructions": "Be kind.",
        "temperature": 0.5,
        "top_p": 0.25,
        "max_output_tokens": 9,
        "parallel_tool_calls": False,
        "truncation": "auto",
        "tool_choice": "none",
        "tools": [ADD],
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": {"a": "b"},
    }
    answer = await respond(served, **asked)
    assert {name: answer[name] for name in asked} == asked


async def test_sampling_that_the_body_leaves_open_is_told_as_it_was(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"sampling_defaults": {"temperature": 0.25, "top_p": 0.5}}) as served:
        answer = await respond(served, max_output_tokens=1, top_p=1)
        assert (answer["temperature"], answer["top_p"]) == (0.25, 1.0)


async def test_events_of_a_text(silent: Serving) -> None:
    events = streamed(await generation(silent), said("Hé"), said(" you"), said("", "stop"))
    assert types_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    created, in_progress, item_added, part_added, *deltas, done, part_done, item_done, completed = events
    assert created["response"] == in_progress["response"]
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert created["response"]["usage"] is None
    assert (item_added["item"]["status"], item_added["item"]["content"]) == ("in_progress", [])
    assert part_added["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert [delta["delta"] for delta in deltas] == ["Hé", " you"]
    assert done["text"] == part_done["part"]["text"] == "Hé you"
    assert completed["response"]["output"] == [item_done["item"]]
    assert text_of(completed["response"]) == "Hé you"
    assert completed["response"]["usage"]["output_tokens"] == 7
    assert {event["item_id"] for event in events if "item_id" in event} == {item_added["item"]["id"]}


async def test_the_exact_bytes_of_a_delta(silent: Serving) -> None:
    asked = await generation(silent)
    first = encoded(asked, said("Hi"))
    item_id = json.loads(first.split(b"data: ")[-1])["item_id"]
    assert encoded(asked, said(' "é\n\n')).decode() == (
        "event: response.output_text.delta\n"
        f'data: {{"type":"response.output_text.delta","item_id":"{item_id}","output_index":0,"content_index":0,'
        '"delta":" \\"é\\n\\n","logprobs":[],"sequence_number":5}\n\n'
    )


async def test_a_streamed_response_is_the_whole_one(served: Serving) -> None:
    events = await stream(served, "hi", instructions="x", top_logprobs=1)
    whole = await respond(served, "hi", instructions="x", top_logprobs=1)
    last = events[-1]["response"]
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == text_of(whole)
    last["usage"]["input_tokens_details"] = whole["usage"]["input_tokens_details"]
    assert without_ids(last) == without_ids(whole)


async def test_an_answer_that_is_cut_off_is_incomplete(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(alphabet)) as served:
        whole = await respond(served, max_output_tokens=3)
        *_, item_done, last = await stream(served, max_output_tokens=3)
    for answer in (whole, last["response"]):
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert answer["completed_at"] is None
        assert answer["output"][0]["status"] == "incomplete"
        assert text_of(answer) == "abc"
    assert (last["type"], item_done["item"]["status"]) == ("response.incomplete", "incomplete")


async def test_an_answer_without_text_is_an_empty_message(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says(""))) as served:
        whole = await respond(served)
        events = await stream(served)
    assert [item["content"][0]["text"] for item in whole["output"]] == [""]
    assert types_of(events)[2:5] == ["output_item.added", "content_part.added", "output_text.done"]


async def test_thinking_is_an_item_of_its_own(silent: Serving) -> None:
    outputs = (said("<think>"), said("\nHm."), said("\n</think>"), said("\n\n"), said("Hi"), said("", "stop"))
    events = streamed(await generation(silent), *outputs)
    assert types_of(events)[2:] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    thoughts, message = events[-1]["response"]["output"]
    assert thoughts.pop("id").startswith("rs_")
    assert thoughts == {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
        "encrypted_content": None,
        "status": "completed",
    }
    assert message["content"][0]["text"] == "Hi"
    assert [event["output_index"] for event in events[2:-1]] == [0] * 6 + [1] * 6
    usage = events[-1]["response"]["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": len("<think>\nHm.\n</think>\n\n")}


async def test_thinking_that_is_cut_off_leaves_no_message(silent: Serving) -> None:
    events = streamed(await generation(silent), said("<think>Hm"), said("m", "length"))
    response = events[-1]["response"]
    assert [(item["type"], item["status"]) for item in response["output"]] == [("reasoning", "incomplete")]
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == response["usage"]["output_tokens"]


async def test_calls_are_items_and_stream_as_their_arguments_come(silent: Serving) -> None:
    asked = await generation(silent, tools=[ADD])
    events = streamed(asked, *map(said, ["Wait.\n", *CALL, "\n", *CALL]), said("", "stop"))
    response = events[-1]["response"]
    message, first, second = response["output"]
    assert message["content"][0]["text"].strip() == "Wait."
    for call in (first, second):
        assert call["id"].startswith("fc_")
        assert (call["type"], call["name"], call["status"]) == ("function_call", "add", "completed")
        assert json.loads(call["arguments"]) == {"a": 1}
    assert first["call_id"] != second["call_id"]
    deltas = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 2
    for index, call in enumerate((first, second), start=1):
        mine = [event for event in events if event.get("output_index") == index]
        assert types_of(mine)[0] == "output_item.added"
        assert (mine[0]["item"]["arguments"], mine[0]["item"]["status"]) == ("", "in_progress")
        assert types_of(mine)[-2:] == ["function_call_arguments.done", "output_item.done"]
        assert "".join(event["delta"] for event in mine if "delta" in event) == call["arguments"]
        assert mine[-2]["arguments"] == call["arguments"]
    assert response["status"] == "completed"


async def test_a_whole_response_has_its_calls(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says(CALL)), template=THINKING_TEMPLATE, info=ROOMY) as served:
        answer = await respond(served, tools=[ADD])
    [call] = answer["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "add", {"a": 1})


async def test_tools_reach_the_template_in_the_form_of_a_chat(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(echoes), template=THINKING_TEMPLATE, info=ROOMY) as served:
        answer = text_of(await respond(served, "x", tools=[ADD], max_output_tokens=80))
    assert answer.startswith('[{"type": "function", "function": {')


def test_a_piece_of_another_kind_begins_an_item() -> None:
    pieces: list[Piece] = [
        Reasoning("a"),
        Reasoning("b"),
        Content("c"),
        ToolCallStart(0, "call_1", "f"),
        ToolCallArguments(0, "{"),
        ToolCallArguments(0, "}"),
        ToolCallStart(1, "call_2", "g"),
        Content("d"),
    ]
    items = OutputItems()
    for piece in pieces:
        items.add(piece)
    items.end("completed")
    assert [item["type"] for item in items.to_list()] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
        "message",
    ]
    assert [item.get("arguments") for item in items.to_list()][2:4] == ["{}", ""]


SPOKEN = st.builds(Content, st.text(min_size=1)) | st.builds(Reasoning, st.text(min_size=1))
CALLED = st.builds(
    lambda name, parts: [ToolCallStart(0, "id", name), *(ToolCallArguments(0, part) for part in parts)],
    st.text(min_size=1),
    st.lists(st.text(min_size=1), max_size=3),
)


@given(st.lists(SPOKEN.map(lambda piece: [piece]) | CALLED, max_size=8))
def test_the_events_of_an_item_join_to_what_it_is_in_the_end(turns: list[list[Piece]]) -> None:
    items = OutputItems()
    events = [event for turn in turns for piece in turn for event in items.add(piece)] + items.end("completed")
    for index, item in enumerate(items.to_list()):
        mine = [event for event in events if event["output_index"] == index]
        assert events[events.index(mine[0]) :][: len(mine)] == mine  # one item after the other
        assert mine[-1] == {"type": "response.output_item.done", "output_index": index, "item": item}
        joined = "".join(event["delta"] for event in mine if "delta" in event)
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        done = next(event for event in mine if event["type"].endswith(("text.done", "arguments.done")))
        assert joined == text == done.get("text", done.get("arguments"))
    assert "".join(event.get("delta", "") for event in events) == "".join(
        piece.text for turn in turns for piece in turn if not isinstance(piece, ToolCallStart)
    )


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([(3, [Content("abc")])], 0),
        ([(3, []), (1, [Content("a")])], 0),
        ([(3, [Reasoning("abc")]), (2, []), (1, [Content("a")]), (5, [])], 5),
        ([(8, [Reasoning("abcdef"), Content("ab")]), (1, [Content("c")])], 6),
        ([(3, [Reasoning("abc")]), (1, [ToolCallStart(0, "id", "f")]), (4, [ToolCallArguments(0, "{}")])], 3),
        ([(3, [Reasoning("abc")]), (1, [])], 4),
    ],
)
def test_tokens_of_thinking_are_counted(outputs: list[tuple[int, list[Piece]]], expected: int) -> None:
    count = ThinkingCount()
    for num_tokens, pieces in outputs:
        count.add([7] * num_tokens, pieces)
    assert count.num_tokens == expected


END, SPACE = 8, 9


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_an_output_of_both_is_divided_at_the_end_of_the_thought(size: int) -> None:
    """In the middle of a character, or of a text that is held back, tokens have no text of their own."""
    tokens = [7, 7, 7, END, SPACE, SPACE, 1, SPACE, END, 1]
    said: list[Piece | None] = [None, None, Reasoning("abc"), None, None, None, Content("a"), None, None, Content("b")]
    for is_hidden in (False, True):
        count = ThinkingCount((END,), lambda token_id: token_id == SPACE)
        for start in range(0, len(tokens), size):
            pieces = [piece for piece in said[start : start + size] if piece is not None]
            shown = [piece for piece in pieces if not (is_hidden and isinstance(piece, Reasoning))]
            count.add(tokens[start : start + size], shown)
        assert count.num_tokens == 6


def test_an_end_of_several_marks_is_found_over_several_outputs() -> None:
    count = ThinkingCount((END, SPACE))
    for tokens in ([7, 7], [7, END], [6]):
        count.add(tokens, [Reasoning("a")])
    count.add([5, SPACE, 1, 1], [Content("a")])
    assert count.num_tokens == 7


async def test_logprobs_are_those_of_the_text(silent: Serving) -> None:
    def chosen(text: str) -> list[TokenLogprobs]:
        return [TokenLogprobs(token_id=byte, logprob=-0.5, top=[(byte, -0.5)]) for byte in text.encode()]

    asked = await generation(silent, include=["message.output_text.logprobs"], top_logprobs=1)
    outputs = [said(text, logprobs=chosen(text)) for text in ("<think>", "Hm</think>", "Hi", "!")]
    half = RequestOutput(index=0, token_ids=[0xC3], logprobs=[TokenLogprobs(token_id=0xC3, logprob=-1.0)])
    events = streamed(asked, *outputs, half, said("", "stop"))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [[entry["bytes"] for entry in delta["logprobs"]] for delta in deltas] == [[[72], [105]], [[33]], [[0xC3]]]
    assert deltas[0]["logprobs"][0] == {
        "token": "H",
        "bytes": [72],
        "logprob": -0.5,
        "top_logprobs": [{"token": "H", "bytes": [72], "logprob": -0.5}],
    }
    joined = [entry for delta in deltas for entry in delta["logprobs"]]
    _, message = events[-1]["response"]["output"]
    assert message["content"][0]["logprobs"] == joined


@pytest.mark.parametrize("body", [{}, {"top_logprobs": 0}, {"include": ["reasoning.encrypted_content"]}])
async def test_logprobs_are_empty_unless_asked_for(served: Serving, body: dict[str, Any]) -> None:
    assert (await respond(served, **body))["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize(
    ("body", "num_top"),
    [({"top_logprobs": 2}, 2), ({"include": ["message.output_text.logprobs"]}, 0)],
)
async def test_logprobs_can_be_asked_for_in_two_ways(served: Serving, body: dict[str, Any], num_top: int) -> None:
    answer = await respond(served, max_output_tokens=2, **body)
    entries = answer["output"][0]["content"][0]["logprobs"]
    assert [len(entry["top_logprobs"]) for entry in entries] == [num_top, num_top]


async def test_a_part_begins_without_logprobs(silent: Serving) -> None:
    asked = await generation(silent, top_logprobs=0, include=["message.output_text.logprobs"])
    entry = TokenLogprobs(token_id=72, logprob=-0.5)
    events = streamed(asked, said("H", logprobs=[entry]), said("", "stop"))
    [added] = [event for event in events if event["type"] == "response.content_part.added"]
    assert added["part"]["logprobs"] == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [(RequestFailedError("boom"), "server_error"), (RequestTimeoutError("too late"), "timeout")],
)
@pytest.mark.parametrize("before", ["", "Hi"])
async def test_a_stream_that_fails_says_so_twice(silent: Serving, error: Exception, kind: str, before: str) -> None:
    asked = await generation(silent)
    text = encoded(asked, *map(said, before)) + b"".join(asked.encode_error(error))
    events = events_of(text.decode())
    assert types_of(events)[:2] == ["created", "in_progress"]
    failed, last = events[-2:]
    response = failed["response"]
    assert (failed["type"], response["status"]) == ("response.failed", "failed")
    assert response["error"] == {"code": "server_error", "message": str(error), "type": kind, "param": None}
    assert [item["status"] for item in response["output"]] == ["incomplete"] * bool(before)
    assert (last["type"], last["message"], last["code"]) == ("error", str(error), kind)
    assert last["error"]["message"] == str(error)


@pytest.mark.parametrize("before", ["", "Hi"])
async def test_the_sdk_raises_in_a_stream_that_fails(silent: Serving, before: str) -> None:
    asked = await generation(silent)
    text = encoded(asked, *map(said, before)) + b"".join(asked.encode_error(RequestFailedError("boom")))
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=text)
    types: list[str] = []
    async with sdk(httpx.MockTransport(lambda request: answer)) as client:
        with pytest.raises(openai.APIError, match="boom"):
            await read_types(await client.responses.create(input="x", stream=True), types)
        assert types[-1] == "response.failed"
        with pytest.raises(openai.APIError, match="boom"):
            await final_response(client)


async def read_types(events: openai.AsyncStream[Any], types: list[str]) -> None:
    async for event in events:
        types.append(event.type)


async def final_response(client: AsyncOpenAI) -> Any:
    async with client.responses.stream(model="fake-model", input="x") as events:
        return await events.get_final_response()


def sdk(transport: httpx.AsyncBaseTransport) -> AsyncOpenAI:
    return AsyncOpenAI(
        api_key="x",
        base_url="http://test/v1",
        http_client=httpx.AsyncClient(transport=transport),  # type: ignore[arg-type]  # declared as httpx2's
        max_retries=0,
    )


async def test_the_sdk_puts_the_stream_together(tmp_path: Path) -> None:
    reply = f"<think>\nHm.\n</think>\n\nWait.\n{CALL}"
    async with (
        serving(tmp_path, FakeExecutor(says(reply)), template=THINKING_TEMPLATE, info=ROOMY) as served,
        sdk(httpx.ASGITransport(served.app)) as client,
        client.responses.stream(model="fake-model", input="x", tools=[ADD]) as events,  # type: ignore[list-item]
    ):
        kinds = {event.type async for event in events}
        response = await events.get_final_response()
    assert {"response.output_text.delta", "response.function_call_arguments.delta", "response.completed"} <= kinds
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.output_text.strip() == "Wait."
    assert response.output[2].parsed_arguments == {"a": 1}  # type: ignore[union-attr]


async def test_an_error_before_the_first_event_is_a_response(served: Serving) -> None:
    response = await served.post(URL, input="x", stream=True, max_output_tokens=1000)
    error = error_of(response, 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_output_tokens")
    assert "max_output_tokens 1000" in error["message"]


async def test_an_unknown_model_is_not_found(served: Serving) -> None:
    assert error_of(await served.post(URL, input="x", model="gpt"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_no_response_is_stored(served: Serving, method: str) -> None:
    answer = await respond(served)
    error = error_of(await served.client.request(method, f"{URL}/{answer['id']}"), 404)
    assert "not stored" in error["message"]


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def call_of(call_id: str, name: str = "add", arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def called(call_id: str, name: str = "add", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def came_of(call_id: str, output: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hi", [message("user", "hi")]),
        ([message("user", "hi")], [message("user", "hi")]),
        ([{"type": "message", **message("developer", "hi")}], [message("developer", "hi")]),
        (
            [message("user", [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}])],
            [message("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])],
        ),
        (
            [message("assistant", [{"type": "output_text", "text": "a", "annotations": [], "logprobs": None}])],
            [message("assistant", [{"type": "text", "text": "a"}])],
        ),
        (
            [message("assistant", [{"type": "refusal", "refusal": "no"}])],
            [message("assistant", [{"type": "refusal", "refusal": "no"}])],
        ),
        (
            [thought("Hm."), message("assistant", "a"), called("1"), called("2", "f", '{"x":1}')],
            [
                {
                    **message("assistant", "a"),
                    "reasoning_content": "Hm.",
                    "tool_calls": [call_of("1"), call_of("2", "f", '{"x":1}')],
                }
            ],
        ),
        (
            [called("1"), came_of("1", "3"), called("2"), came_of("2", [{"type": "input_text", "text": "4"}])],
            [
                {"role": "assistant", "tool_calls": [call_of("1")]},
                {"role": "tool", "tool_call_id": "1", "content": "3"},
                {"role": "assistant", "tool_calls": [call_of("2")]},
                {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "4"}]},
            ],
        ),
        (
            [message("assistant", "a"), message("assistant", "b")],
            [message("assistant", "a"), message("assistant", "b")],
        ),
        (
            [message("assistant", "a"), thought("Hm."), message("assistant", "b")],
            [message("assistant", "a"), {**message("assistant", "b"), "reasoning_content": "Hm."}],
        ),
        (
            [thought("a"), thought("b"), message("assistant", "c")],
            [{**message("assistant", "c"), "reasoning_content": "a\nb"}],
        ),
        ([thought("Hm."), message("user", "hi"), thought("Hm.")], [message("user", "hi")]),
        (
            [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}], "content": None},
                message("assistant", "a"),
            ],
            [{**message("assistant", "a"), "reasoning_content": "short"}],
        ),
        (
            [{"type": "reasoning", "summary": [], "encrypted_content": "x"}, message("assistant", "a")],
            [message("assistant", "a")],
        ),
    ],
)
def test_items_become_messages(given: Any, expected: list[dict[str, Any]]) -> None:
    def plain(entry: dict[str, Any]) -> dict[str, Any]:
        return dict(sorted(entry.items()))

    assert list(map(plain, read_input(given))) == list(map(plain, expected))


def test_instructions_come_first() -> None:
    assert read_input("hi", "Be kind.") == [message("system", "Be kind."), message("user", "hi")]


@given(st.text(), st.text(min_size=1), st.lists(st.tuples(st.text(min_size=1), st.text()), max_size=4))
def test_what_was_answered_can_be_sent_back(thoughts: str, content: str, calls: list[tuple[str, str]]) -> None:
    items = OutputItems()
    if thoughts:
        items.add(Reasoning(thoughts))
    items.add(Content(content))
    for index, (name, arguments) in enumerate(calls):
        items.add(ToolCallStart(index, f"call_{index}", name))
        items.add(ToolCallArguments(index, arguments))
    items.end("completed")
    [answer] = read_input(items.to_list())
    assert answer.get("reasoning_content", "") == thoughts
    assert answer["content"] == [{"type": "text", "text": content}]
    expected = [call_of(f"call_{index}", name, arguments) for index, (name, arguments) in enumerate(calls)]
    assert answer.get("tool_calls", []) == expected


async def test_instructions_and_messages_reach_the_template(tmp_path: Path) -> None:
    given = [message("developer", "b"), message("user", [{"type": "input_text", "text": "c"}])]
    async with serving(tmp_path, FakeExecutor(echoes)) as served:
        answer = await respond(served, given, instructions="a", ignore_eos=True, max_output_tokens=60)
    assert text_of(answer) == "system\na\nsystem\nb\nuser\nc\nassistant\n"


@in_one_loop
@pytest.mark.parametrize(
    ("given", "param"),
    [
        (None, "input"),
        (5, "input"),
        ([], "input"),
        ([message("user", "x")] * 4097, "input"),
        (["x"], "input[0]"),
        ([message("king", "x")], "input[0].role"),
        ([message("tool", "x")], "input[0].role"),
        ([message("user", "x"), {"role": "user"}], "input[1].content"),
        ([message("user", 5)], "input[0].content"),
        ([message("user", ["x"])], "input[0].content[0]"),
        ([message("user", [{"type": "input_text"}])], "input[0].content[0].text"),
        ([message("user", [{"type": "input_image", "image_url": "http://x/y.png"}])], "input[0].content[0]"),
        ([message("user", [{"type": "input_file", "file_id": "x"}])], "input[0].content[0]"),
        ([message("user", [{"type": "input_audio"}])], "input[0].content[0]"),
        ([came_of("1", [{"type": "input_image", "image_url": "x"}])], "input[0].output[0]"),
        ([{"type": "function_call", "call_id": "1", "name": "f"}], "input[0].arguments"),
        ([{"type": "function_call_output", "output": "x"}], "input[0].call_id"),
        ([{"type": "function_call_output", "call_id": "1"}], "input[0].output"),
        ([{"type": "item_reference", "id": "msg_1"}], "input[0]"),
        ([{"id": "msg_1"}], "input[0]"),
        ([{"type": "web_search_call", "id": "ws_1"}], "input"),
        ([{"type": "telepathy_call", "id": "ws_1"}], "input[0].type"),
        ([{"type": "local_shell_call", "call_id": "1"}], "input[0].action"),
        ([{"type": "local_shell_call", "action": {}}], "input[0].call_id"),
        ([{"type": ["message"]}], "input[0].type"),
        ([{"type": "reasoning", "summary": "x"}], "input[0].summary"),
        ([{"type": "reasoning", "summary": [{"type": "text", "text": "x"}]}], "input[0].summary[0].type"),
    ],
)
async def test_a_wrong_item_is_named(lasting: Serving, given: Any, param: str) -> None:
    error = error_of(await lasting.post(URL, input=given), 400)
    assert error["param"] == param
    assert param in error["message"]


async def test_items_of_hosted_tools_are_left_out_and_named(served: Serving) -> None:
    kinds = ["web_search_call", "file_search_call", "code_interpreter_call", "computer_call", "computer_call_output"]
    kinds += ["image_generation_call", "mcp_call", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response"]
    kinds += ["tool_search_call", "tool_search_output", "compaction"]
    items = [message("user", "x"), *({"type": kind, "id": "i"} for kind in kinds), message("user", "y")]
    response = await served.post(URL, input=items)
    assert response.status_code == 200, response.text
    places = [f"input[{index}]={kind}" for index, kind in enumerate(kinds, 1)]
    assert response.headers["x-orcinus-left-out"] == ", ".join(places)
    assert read_input(items) == [message("user", "x"), message("user", "y")]


def test_calls_that_clients_run_are_calls_of_functions() -> None:
    shell = {"type": "local_shell_call", "id": "l", "call_id": "1", "action": {"type": "exec", "command": ["ls"]}}
    patch = {"type": "apply_patch_call", "call_id": "2", "operation": {"type": "delete_file", "path": "é"}}
    outputs = [
        came_of("1", "a"),
        {"type": "apply_patch_call_output", "call_id": "2", "output": "done"},
        {"type": "shell_call_output", "call_id": "3", "output": [{"stdout": "b"}]},
        {"type": "local_shell_call_output", "id": "4", "output": "c"},
        {"type": "apply_patch_call_output", "call_id": "5", "status": "completed"},
    ]
    assert read_input([shell, patch, *outputs]) == [
        {
            "role": "assistant",
            "tool_calls": [
                call_of("1", "local_shell", '{"type": "exec", "command": ["ls"]}'),
                call_of("2", "apply_patch", '{"type": "delete_file", "path": "é"}'),
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "a"},
        {"role": "tool", "tool_call_id": "2", "content": "done"},
        {"role": "tool", "tool_call_id": "3", "content": '[{"stdout": "b"}]'},
        {"role": "tool", "tool_call_id": "4", "content": "c"},
        {"role": "tool", "tool_call_id": "5", "content": ""},
    ]


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
async def test_what_is_not_text_is_refused_as_such(served: Serving, kind: str) -> None:
    error = error_of(await served.post(URL, input=[message("user", [{"type": kind}])]), 400)
    assert "takes text only" in error["message"]
    assert kind in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "telepathy"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "no spaces"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": []}]}, "tools[0].parameters"),
        ({"tools": [ADD, ADD]}, "tools[1].name"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "sub"}}, "tool_choice.name"),
        ({"tools": [ADD], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
        ({"tools": [ADD], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [ADD], "tool_choice": {"type": "allowed_tools", "mode": "all", "tools": [ADD]}},
            "tool_choice.mode",
        ),
        (
            {
                "tools": [ADD],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "sub"}],
                },
            },
            "tool_choice.tools[0].name",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"verbosity": "none"}}, "text.verbosity"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": ["everything"]}, "include[0]"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"x": 5}}, "metadata.x"),
        ({"metadata": {"x": "y" * 513}}, "metadata.x"),
        ({"truncation": "auto", "truncate_prompt_tokens": 5}, "truncation"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
    ],
)
async def test_a_wrong_parameter_has_the_name_that_the_client_knows(
    silent: Serving, body: dict[str, Any], param: str
) -> None:
    error = error_of(await silent.post(URL, input="x", **body), 400)
    assert error["param"] == param
    assert param.partition("[")[0] in error["message"]
    assert ".function." not in error["message"]


async def test_a_template_that_refuses_the_messages_blames_the_input(tmp_path: Path) -> None:
    async with serving(tmp_path, template="{{ raise_exception('no') }}") as served:
        assert error_of(await served.post(URL, input="x"), 400)["param"] == "input"


async def test_truncation_keeps_the_end_of_the_conversation(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(alphabet)) as served:
        error_of(await served.post(URL, input="x" * 300), 400)
        answer = await respond(served, "x" * 300, truncation="auto", max_output_tokens=6)
    assert answer["usage"]["input_tokens"] == 250
    assert text_of(answer) == "abcdef"


class Recorder:
    """An engine's `submit` and `check_grammar` that keep what they were given; the first refuses it."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.grammars: list[tuple[Grammar, str]] = []

    def submit(self, request: GenerationRequest) -> Any:
        self.requests.append(request)
        raise InvalidRequestError("recorded")

    async def check_grammar(self, grammar: Grammar, param: str) -> None:
        self.grammars.append((grammar, param))


@pytest.fixture
def recorder(silent: Serving, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(silent.engine, "submit", recorder.submit)
    monkeypatch.setattr(silent.engine, "check_grammar", recorder.check_grammar, raising=False)
    return recorder


async def test_parameters_reach_the_engine(silent: Serving, recorder: Recorder) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125, "seed": 11, "min_tokens": 1}
    penalties = {"presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.25}
    ends = {"stop": "a", "stop_token_ids": [9], "ignore_eos": True}
    rest = {"priority": -3, "cache_salt": "salt", "timeout": 2.5, "logit_bias": {"7": -100}}
    body = {**sampling, **penalties, **ends, **rest, "max_output_tokens": 5, "top_logprobs": 4}
    await silent.post(URL, input="x", **body)
    [request] = recorder.requests
    asked = request.sampling
    assert {name: getattr(asked, name) for name in {**sampling, **penalties}} == {**sampling, **penalties}
    assert (asked.stop, asked.stop_token_ids, asked.ignore_eos, asked.logit_bias) == (("a",), (9,), True, {7: -100.0})
    assert (asked.n, asked.max_tokens, asked.logprobs) == (1, 5, 4)
    assert (request.priority, request.cache_salt, request.timeout_s) == (-3, "salt", 2.5)


async def test_null_equals_absent(silent: Serving, recorder: Recorder) -> None:
    names = {row.name for row in parameter_table({"responses": ResponseBody}) if "responses" in row.endpoints}
    await silent.post(URL, input="x")
    await silent.post(URL, input="x", **dict.fromkeys(names - {"input"}))
    first, second = recorder.requests
    assert (first.sampling, first.prompts, first.priority) == (second.sampling, second.prompts, second.priority)


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"type": "json_object"}, Grammar("json_object")),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True, "description": None},
            Grammar("json_schema", '{"type": "object"}'),
        ),
    ],
)
async def test_a_format_is_enforced(
    silent: Serving, recorder: Recorder, form: dict[str, Any], grammar: Grammar
) -> None:
    await silent.post(URL, input="x", text={"format": form})
    [request] = recorder.requests
    assert request.sampling.grammar is not None
    assert (request.sampling.grammar.kind, request.sampling.grammar.source) == (grammar.kind, grammar.source)
    assert len(recorder.grammars) == 1


async def test_a_format_that_cannot_be_compiled_has_the_name_of_this_api(
    silent: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(grammar: Grammar, param: str) -> None:
        raise InvalidRequestError(f"{param} is too hard", param)

    monkeypatch.setattr(silent.engine, "check_grammar", refuse, raising=False)
    form = {"type": "json_schema", "name": "n", "schema": {}}
    error = error_of(await silent.post(URL, input="x", text={"format": form}), 400)
    assert (error["param"], error["message"]) == ("text.format", "text.format is too hard")


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "add"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]},
    ],
)
async def test_a_call_can_be_required(silent: Serving, recorder: Recorder, choice: Any) -> None:
    await silent.post(URL, input="x", tools=[ADD], tool_choice=choice)
    [request] = recorder.requests
    assert request.sampling.grammar is not None
    assert "add" in request.sampling.grammar.source


async def test_one_call_at_most_can_be_asked_for(silent: Serving, recorder: Recorder) -> None:
    for is_parallel in (None, True, False):
        await silent.post(URL, input="x", tools=[ADD], tool_choice="required", parallel_tool_calls=is_parallel)
    default, many, one = [request.sampling.grammar for request in recorder.requests]
    assert default == many != one


async def test_effort_reaches_the_template(tmp_path: Path) -> None:
    template = "{{ messages[0].content }} {{ reasoning_effort }} {{ style }}"
    async with serving(tmp_path, FakeExecutor(echoes), template=template) as served:
        answer = await respond(served, "a", reasoning={"effort": "low"}, chat_template_kwargs={"style": "dry"})
        assert text_of(answer) == "a low dry"


def test_every_parameter_of_the_sdk_has_a_decision() -> None:
    decided = {row.name for row in parameter_table({"responses": ResponseBody}) if "responses" in row.endpoints}
    assert set(inspect.signature(Responses.create).parameters) - CLIENT_ONLY <= decided


async def test_the_document_has_the_body(served: Serving) -> None:
    document = answer_of(await served.client.get("/openapi.json"))
    operation = document["paths"][URL]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    properties = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    assert {"input", "instructions", "max_output_tokens", "text", "tools", "temperature"} <= set(properties)
    assert all(field.get("description") for field in properties.values())
