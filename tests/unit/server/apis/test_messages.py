"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's blocks in, and out as its events and its errors."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.messages import StepPlan
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.engine.sampling_params import SamplingParams
from orcinus.server.apis.chat.body import parse_chat
from orcinus.server.apis.chat_request import ChatRequest
from orcinus.server.apis.messages.answer import MessageGeneration, read_input, start_message
from orcinus.server.apis.messages.body import MessagesBody, parse_message_count, parse_messages
from orcinus.server.apis.messages.input import parameter_names, to_chat_body
from orcinus.server.apis.parameter_names import naming_parameters
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.requests.parameters import IGNORED, REFUSED
from tests.growth import at_most_as_long_as_parsing
from tests.message_events import named_events, put_together
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Gate, Serving, answer_of, generation_request, serving, until, user

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
TEMPLATE = (
    "{% if tools %}<|start|>tools\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for message in messages %}<|start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
ANSWER = (
    "<think>\nParis, then.\n</think>\n\nLet me look."
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
WEATHER = {
    "name": "get_weather",
    "description": "Get the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TIME = {"name": "get_time", "input_schema": {"type": "object"}}
LONG = {"max_model_len": 2048, "num_kv_blocks": 256}


@pytest.fixture
async def thinker(tmp_path: Path) -> AsyncIterator[Serving]:
    """An app whose model thinks, says a word, and calls two tools, if its template is asked for them."""
    async with serving(tmp_path, FakeExecutor(says(ANSWER)), info=LONG, template=TEMPLATE) as running:
        yield running


async def send(served: Serving, text: Any = "hi", **body: Any) -> httpx.Response:
    return await served.post(PATH, **{"max_tokens": 200, "messages": [user(text)], **body})


async def message(served: Serving, text: Any = "hi", **body: Any) -> dict[str, Any]:
    return answer_of(await send(served, text, **body))


async def count(served: Serving, text: Any = "hi", **body: Any) -> int:
    answer = answer_of(await served.post(COUNT, **{"messages": [user(text)], **body}))
    assert set(answer) == {"input_tokens"}
    return int(answer["input_tokens"])


def anthropic_error_of(response: httpx.Response, status: int) -> dict[str, str]:
    """The error of a response, whose shape and status are checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["x-request-id"] == response.headers["request-id"]
    assert set(body["error"]) == {"type", "message"}
    error: dict[str, str] = body["error"]
    assert len(error["message"]) < 500
    return error


def without_id(answer: dict[str, Any]) -> dict[str, Any]:
    assert answer["id"].startswith("msg_")
    content = [{**block, "id": block["id"][:6]} if "id" in block else block for block in answer["content"]]
    return {name: value for name, value in answer.items() if name != "id"} | {"content": content}


async def test_a_whole_message_has_every_field(served: Serving) -> None:
    answer = await message(served)
    assert without_id(answer) == {
        "type": "message",
        "role": "assistant",
        "model": "fake-model",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": await count(served),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 6,
            "cache_miss": {"reason": "new"},
        },
    }


async def test_a_stream_has_exactly_these_bytes(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hi"))) as served:
        response = await send(served, "x", stream=True, max_tokens=1)
        message_id = next(named_events(response.text))["message"]["id"]
        usage = '"input_tokens":20,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1'
        usage += ',"cache_miss":{"reason":"new"}'
        assert response.headers["server-timing"] == 'cached_tokens;desc=0, cache_miss;desc="new"'
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.text == (
            'event: message_start\ndata: {"type":"message_start","message":{"id":"' + message_id + '","type":"message",'
            '"role":"assistant","model":"fake-model","content":[],"stop_reason":null,"stop_sequence":null,'
            '"usage":{' + usage + "}}}\n\n"
            'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
            '"content_block":{"type":"text","text":""}}\n\n'
            'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            '"delta":{"type":"text_delta","text":"H"}}\n\n'
            'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
            'event: message_delta\ndata: {"type":"message_delta",'
            '"delta":{"stop_reason":"max_tokens","stop_sequence":null},"usage":{' + usage + "}}\n\n"
            'event: message_stop\ndata: {"type":"message_stop"}\n\n'
        )


@pytest.mark.parametrize(
    ("body", "stop_reason", "stop_sequence"),
    [
        ({}, "end_turn", None),
        ({"max_tokens": 2}, "max_tokens", None),
        ({"stop_sequences": ["zz", "ll"]}, "stop_sequence", "ll"),
        ({"stop_sequences": ["l"], "max_tokens": 3}, "stop_sequence", "l"),
        ({"stop": "o"}, "stop_sequence", "o"),
        ({"stop_token_ids": [ord("o")]}, "end_turn", None),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_stop_reason_says_what_ended_it(
    served: Serving, body: dict[str, Any], stop_reason: str, stop_sequence: str | None, is_streamed: bool
) -> None:
    response = await send(served, **body, stream=is_streamed)
    answer = put_together(named_events(response.text)) if is_streamed else answer_of(response)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (stop_reason, stop_sequence)


async def test_thinking_text_and_uses_of_tools_are_blocks_in_the_order_they_come_in(thinker: Serving) -> None:
    answer = await message(thinker, tools=[WEATHER, TIME])
    assert without_id(answer)["content"] == [
        {"type": "thinking", "thinking": "Paris, then.", "signature": ""},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "toolu_", "name": "get_weather", "input": {"city": "Paris", "days": 2}},
        {"type": "tool_use", "id": "toolu_", "name": "get_time", "input": {}},
    ]
    assert answer["stop_reason"] == "tool_use"
    ids = [block["id"] for block in answer["content"] if "id" in block]
    assert all(len(call_id) > len("toolu_") and "call_" not in call_id for call_id in ids)
    assert len(set(ids)) == 2


@pytest.mark.parametrize("max_tokens", [3, 25, 50, 100, 120, 200])
async def test_a_stream_is_the_whole_message_in_parts(thinker: Serving, max_tokens: int) -> None:
    body = {"tools": [WEATHER, TIME], "max_tokens": max_tokens, "cache_salt": str(max_tokens)}
    whole = await message(thinker, **body)
    streamed = put_together(named_events((await send(thinker, stream=True, **body)).text))
    whole["usage"], streamed["usage"] = ({**each["usage"]} for each in (whole, streamed))
    assert whole["usage"].pop("cache_miss") == {"reason": "new"}
    for answer in (whole, streamed):
        answer["usage"]["input_tokens"] += answer["usage"].pop("cache_read_input_tokens")
    assert without_id(streamed) == without_id(whole)


async def test_one_call_at_most_where_parallel_use_is_disabled(thinker: Serving) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    answer = await message(thinker, tools=[WEATHER, TIME], tool_choice=choice)
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use"]


@pytest.mark.parametrize("body", [{}, {"tools": [WEATHER], "tool_choice": {"type": "none"}}])
async def test_where_no_tool_may_be_used_all_is_text(thinker: Serving, body: dict[str, Any]) -> None:
    answer = await message(thinker, **body)
    assert [block["type"] for block in answer["content"]] == ["thinking", "text"]
    assert "<tool_call>" in answer["content"][1]["text"]
    assert answer["stop_reason"] == "end_turn"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_omitted_thinking_is_a_block_without_its_text(thinker: Serving, is_streamed: bool) -> None:
    body = {"tools": [WEATHER, TIME], "thinking": {"type": "enabled", "display": "omitted"}, "stream": is_streamed}
    response = await send(thinker, **body)
    answer = put_together(named_events(response.text)) if is_streamed else answer_of(response)
    assert answer["content"][0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert "Paris, then" not in response.text
    sent_back = chat_of(user("a"), {"role": "assistant", "content": answer["content"][:2]}, user("b"))
    assert "reasoning_content" not in sent_back.messages[1]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_no_tokens_warm_the_cache(served: Serving, is_streamed: bool) -> None:
    text = "0123456789" * 8
    response = await send(served, text, max_tokens=0, stream=is_streamed)
    answer = put_together(named_events(response.text)) if is_streamed else answer_of(response)
    assert (answer["content"], answer["stop_reason"]) == ([], "max_tokens")
    assert answer["usage"]["output_tokens"] == 0
    assert (await message(served, text, max_tokens=1))["usage"]["cache_read_input_tokens"] >= 64


async def test_names_of_tools_may_be_long(thinker: Serving) -> None:
    tools = [{"name": "mcp__" + "a" * 123, **SCHEMA}]
    assert (await message(thinker, tools=tools))["stop_reason"]
    assert await count(thinker, tools=tools) > 128


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
async def test_the_error_over_a_thread_tells_the_sdk_to_do_without(served: Serving, thread: Any) -> None:
    response = await send(served, thread=thread)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert "thread is not supported" in error["message"]


async def test_a_message_of_nothing_has_no_blocks(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says(""))) as served:
        assert (await message(served))["content"] == []
        assert put_together(named_events((await send(served, stream=True)).text))["content"] == []


async def test_cached_tokens_are_not_among_the_input(served: Serving) -> None:
    text = "0123456789" * 8
    total = await count(served, text)
    for is_streamed in (False, True):
        response = await send(served, text, stream=is_streamed, max_tokens=9)
        usage = (put_together(named_events(response.text)) if is_streamed else answer_of(response))["usage"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == total
    assert usage["cache_read_input_tokens"] >= 64
    start = next(named_events(response.text))["message"]["usage"]
    assert start["cache_read_input_tokens"] == usage["cache_read_input_tokens"]


# --- pieces -----------------------------------------------------------------------------------------------


class Script:
    """A reader that makes of each character the pieces that were written for it."""

    num_tool_calls = 0

    def __init__(self, pieces: list[list[Piece]]) -> None:
        self._pieces = iter(pieces)

    def feed(self, text: str) -> list[Piece]:
        return [piece for _ in text for piece in next(self._pieces)]

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        return []


class Outputs:
    """A stream of outputs, of one character each."""

    def __init__(self, num_outputs: int) -> None:
        self._outputs = iter(
            RequestOutput(index=0, text="x", token_ids=[120], finish_reason="stop" if i + 1 == num_outputs else None)
            for i in range(num_outputs)
        )

    def __aiter__(self) -> "Outputs":
        return self

    async def __anext__(self) -> RequestOutput:
        for output in self._outputs:
            return output
        raise StopAsyncIteration

    def abort(self) -> None: ...


class OneModel:
    """As much of a context as a message needs."""

    model_name = "one"

    class engine:  # noqa: N801
        tokenizer = None


def generation_of(pieces: list[list[Piece]], *, is_streamed: bool) -> MessageGeneration:
    request = GenerationRequest(request_id="msg_1", prompts=[[1, 2]], sampling=SamplingParams())
    chat = ChatRequest(parse_chat({}), request, None, lambda: Script(pieces))
    return MessageGeneration(OneModel(), chat, Outputs(len(pieces)), is_streamed=is_streamed)  # type: ignore[arg-type]


async def stream_of(pieces: list[list[Piece]]) -> str:
    generation = generation_of(pieces, is_streamed=True)
    events = [event async for output in generation.stream for event in generation.encode(output)]
    return b"".join([*events, *generation.encode_end()]).decode()


ARGUMENTS = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2).map(json.dumps)
SAID = st.one_of(
    st.builds(Content, st.text(min_size=1, max_size=3)),
    st.builds(Reasoning, st.text(min_size=1, max_size=3)),
    ARGUMENTS,
)


@st.composite
def written(draw: st.DrawFn) -> list[list[Piece]]:
    """Pieces in any order that a model may write, cut into outputs."""
    pieces: list[Piece] = []
    num_calls = 0
    for said in draw(st.lists(SAID, max_size=8)):
        if not isinstance(said, str):
            pieces.append(said)
            continue
        pieces.append(ToolCallStart(num_calls, f"call_{num_calls}", "f"))
        cut = draw(st.integers(0, len(said)))
        pieces += [ToolCallArguments(num_calls, part) for part in (said[:cut], said[cut:]) if part]
        num_calls += 1
    cuts = sorted(draw(st.lists(st.integers(0, len(pieces)), max_size=4)))
    return [pieces[start:end] for start, end in zip([0, *cuts], [*cuts, len(pieces)], strict=True)]


@given(written())
def test_whatever_the_pieces_a_stream_puts_together_to_the_whole(pieces: list[list[Piece]]) -> None:
    whole = json.loads(b"".join(asyncio.run(generation_of(pieces, is_streamed=False).whole())))
    assert put_together(named_events(asyncio.run(stream_of(pieces)))) == whole
    kinds = [block["type"] for block in whole["content"]]
    assert all(pair not in (("text", "text"), ("thinking", "thinking")) for pair in pairwise(kinds))
    assert (whole["stop_reason"] == "tool_use") == ("tool_use" in kinds)


async def test_a_block_of_thinking_ends_with_its_signature() -> None:
    events = list(named_events(await stream_of([[Reasoning("a")], [Reasoning("b"), Content("c")]])))
    assert [event.get("delta", {}).get("type", event["type"]) for event in events] == [
        "message_start",
        "content_block_start",
        "thinking_delta",
        "thinking_delta",
        "signature_delta",
        "content_block_stop",
        "content_block_start",
        "text_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ("", {}),
        ('{"city": "Paris"}', {"city": "Paris"}),
        ('{"city": "Paris", "unit": "cel', {"city": "Paris"}),
        ('{"a": [1, {"b": 2', {"a": [1, {"b": 2}]}),
        ("{", {}),
        (f'{{"n": {10**30}}}', {"n": 10**30}),
        ("{'city': 'Paris'}", {"INVALID_JSON": "{'city': 'Paris'}"}),
        ('{"n": NaN}', {"INVALID_JSON": '{"n": NaN}'}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('{"a":' * 5000, {"INVALID_JSON": '{"a":' * 5000}),
    ],
)
def test_the_input_of_a_tool_is_always_an_object(arguments: str, value: dict[str, Any]) -> None:
    assert read_input(arguments) == value


# --- conversations ----------------------------------------------------------------------------------------


def text_block(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def use(call_id: str = "toolu_1", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "f", "input": given}


def result(content: Any = "21", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def chat_of(*messages: dict[str, Any], **body: Any) -> Any:
    return to_chat_body(parse_message_count({"messages": list(messages), **body}))


def tool_message(content: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": "1", "content": content}


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ([user("a")], [user("a")]),
        (
            [user([text_block("a"), text_block("b", cache_control={"type": "ephemeral"}, citations=None)])],
            [user("a\nb")],
        ),
        ([user("a"), user("b")], [user("a\nb")]),
        ([user([result(), text_block("a")]), user("b")], [tool_message("21"), user("a\nb")]),
        ([user([result()]), user([result("22")])], [tool_message("21"), tool_message("22")]),
        (
            [assistant("a"), assistant([text_block("b"), use(x=1)]), user([result()])],
            [{**assistant("a\nb"), "tool_calls": [CALL]}, tool_message("21")],
        ),
        (
            [user("a"), {"role": "system", "content": [text_block("s")]}],
            [user("a"), {"role": "system", "content": "s"}],
        ),
        ([assistant("a"), user("b")], [assistant("a"), user("b")]),
        (
            [assistant([text_block("a"), use(x=1)]), user([result(), text_block("b")])],
            [{**assistant("a"), "tool_calls": [CALL]}, tool_message("21"), user("b")],
        ),
        ([assistant([use(x=1)]), user([result()])], [{"role": "assistant", "tool_calls": [CALL]}, tool_message("21")]),
        (
            [user([text_block("a"), result(), result([text_block("b"), text_block("c")]), text_block("d")])],
            [user("a"), tool_message("21"), tool_message("b\nc"), user("d")],
        ),
        ([user([result(None), result(""), result([])])], [tool_message("")] * 3),
        ([user([result("no such city", is_error=True)])], [tool_message("Error: no such city")]),
        (
            [
                assistant(
                    [
                        {"type": "thinking", "thinking": "hm", "signature": "x"},
                        {"type": "redacted_thinking", "data": "y"},
                        text_block("a"),
                    ]
                ),
                user("b"),
            ],
            [{**assistant("a"), "reasoning_content": "hm"}, user("b")],
        ),
    ],
)
def test_a_conversation_becomes_that_of_a_chat(sent: list[dict[str, Any]], read: list[dict[str, Any]]) -> None:
    assert chat_of(*sent).messages == read
    assert chat_of(*sent, system="s").messages == [{"role": "system", "content": "s"}, *read]


@pytest.mark.parametrize(
    ("system", "read"), [("", None), ([], None), ([text_block("a"), text_block("b")], "a\nb"), ("a", "a")]
)
def test_the_system_prompt_comes_first_if_it_has_text(system: Any, read: str | None) -> None:
    messages = chat_of(user("x"), system=system).messages
    assert messages == [*([{"role": "system", "content": read}] if read else []), user("x")]


def test_a_begun_answer_is_continued() -> None:
    assert not chat_of(user("a")).continue_final_message
    assert chat_of(user("a"), assistant("b")).continue_final_message
    assert chat_of(user("a"), assistant([text_block("b")])).continue_final_message


async def test_the_prompt_of_a_begun_answer_stays_open(thinker: Serving) -> None:
    begun = await count(thinker, messages=[user("a"), assistant("The answer")])
    asked = await count(thinker, messages=[user("a")])
    assert begun - asked == len("The answer")


async def test_what_a_message_answered_can_be_sent_back(thinker: Serving) -> None:
    tools = [WEATHER, TIME]
    answer = await message(thinker, tools=tools)
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "21"}
        for block in answer["content"]
        if block["type"] == "tool_use"
    ]
    turns = [user("hi"), {"role": "assistant", "content": answer["content"]}, user(results)]
    assert await count(thinker, messages=turns, tools=tools) > await count(thinker, tools=tools)
    assert (await message(thinker, messages=turns, tools=tools))["stop_reason"] == "tool_use"


async def test_messages_of_one_role_are_one_turn(thinker: Serving) -> None:
    blocks = user([text_block("a"), text_block("b")])
    assert await count(thinker, messages=[user("a"), user("b")]) == await count(thinker, messages=[blocks])
    wrong = anthropic_error_of(await thinker.post(COUNT, messages=[user("a"), user(["b"])]), 400)
    assert "messages[1].content[0]" in wrong["message"]


async def test_a_call_alone_is_kept_where_the_template_asks_whether_there_is_content(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}"
        "{% for c in m.tool_calls %}<call>{{ c.function.name + c.function.arguments }}</call>{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{{ tools }}"
    )
    async with serving(tmp_path, FakeExecutor(says("x")), info=LONG, template=template) as served:
        turns = [user("a"), assistant([use(x=1)]), user([result()])]
        with_call, without = await count(served, messages=turns), await count(served, messages=[user("a21")])
        assert with_call - without == len('<call>f{"x": 1}</call>')


def test_a_tool_keeps_its_fields_in_the_order_of_the_client() -> None:
    tool = {"input_schema": {"type": "object"}, "strict": True, "name": "f", "description": "d"}
    [read] = chat_of(user("x"), tools=[tool]).tools
    assert list(read["function"]) == ["parameters", "strict", "name", "description"]


def test_a_tool_becomes_a_function() -> None:
    example = {**WEATHER, "type": "custom", "strict": True, "input_examples": [{"city": "Rome"}]}
    passed_over = {"cache_control": {"type": "ephemeral"}, "defer_loading": False, "allowed_callers": ["direct"]}
    function = {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": WEATHER["input_schema"],
        "strict": True,
        "input_examples": [{"city": "Rome"}],
    }
    assert chat_of(user("x"), tools=[{**example, **passed_over}]).tools == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("choice", "read", "parallel"),
    [
        ({"type": "auto"}, "auto", True),
        ({"type": "any"}, "required", True),
        ({"type": "none"}, "none", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "tool", "name": "get_time"}, {"type": "function", "function": {"name": "get_time"}}, True),
        (None, None, None),
    ],
)
def test_a_choice_of_tools_becomes_that_of_a_chat(choice: Any, read: Any, parallel: bool | None) -> None:
    chat = chat_of(user("x"), tools=[WEATHER, TIME], tool_choice=choice)
    assert (chat.tool_choice, chat.parallel_tool_calls) == (read, parallel)


@pytest.mark.parametrize(
    ("thinking", "variables"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, {"enable_thinking": True}),
        ({"type": "adaptive", "display": "summarized"}, {"enable_thinking": True}),
        ({"type": "disabled"}, {"enable_thinking": False}),
        (None, {}),
    ],
)
def test_thinking_is_a_matter_of_the_template(thinking: Any, variables: dict[str, bool]) -> None:
    assert chat_of(user("x"), thinking=thinking).chat_template_kwargs == variables
    more = {"style": "dry"}
    chat = chat_of(user("x"), thinking=thinking, chat_template_kwargs=more)
    assert chat.chat_template_kwargs == {**variables, **more}


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_a_format_becomes_that_of_a_chat(place: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    chat = chat_of(user("x"), **{place: form if place == "output_format" else {"format": form, "effort": "low"}})
    assert chat.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "output", "schema": {"type": "object"}},
    }
    assert chat.reasoning_effort == ("low" if place == "output_config" else None)


def test_only_what_is_set_is_handed_on() -> None:
    chat = chat_of(user("x"))
    assert chat.model_fields_set <= {"messages", "continue_final_message", "stop", "tools", "chat_template_kwargs"}
    settings = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "seed": 7,
        "max_tokens": 5,
        "timeout": 2.5,
        "priority": 1,
    }
    chat = chat_of(user("x"), **settings, stop_sequences=["a", "b"], stream=True)
    assert {name: getattr(chat, name) for name in settings} == settings
    assert chat.stop == ["a", "b"]


def test_null_equals_absent_for_every_field() -> None:
    nulls = dict.fromkeys(MessagesBody.model_fields.keys() - {"messages"})
    assert chat_of(user("x"), **nulls) == chat_of(user("x"))
    assert chat_of(user("x"), tool_choice={"type": "auto", "name": None, "disable_parallel_tool_use": None})


# --- what other servers left behind -----------------------------------------------------------------------

SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "web_search_result"}]}
DOCUMENT = {"type": "document", "title": "t", "source": {"type": "text", "media_type": "text/plain", "data": "doc"}}
LISTED = {"type": "document", "source": {"type": "content", "content": [text_block("a"), text_block("b")]}}
SEARCHED = {"type": "search_result", "source": "s", "title": "t", "content": [text_block("c")]}


async def test_what_a_hosted_tool_did_is_left_out_and_named(served: Serving) -> None:
    turns = [user("hi"), assistant([text_block("a"), SEARCH, FOUND, text_block("b")]), user("on")]
    response = await served.post(PATH, messages=turns, max_tokens=5)
    assert response.status_code == 200, response.text
    places = "messages[1].content[1]=server_tool_use, messages[1].content[2]=web_search_tool_result"
    assert response.headers["x-orcinus-left-out"] == places
    assert chat_of(*turns).messages[1] == {"role": "assistant", "content": "a\nb"}


@pytest.mark.parametrize(
    "kind",
    [
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "mcp_tool_use",
        "mcp_tool_result",
        "compaction",
    ],
)
def test_a_message_of_nothing_else_is_left_out(kind: str) -> None:
    assert chat_of(user("a"), assistant([{"type": kind}]), user("b")).messages == [user("a\nb")]


def test_blocks_keep_their_places_behind_those_that_are_left_out() -> None:
    with pytest.raises(InvalidRequestError, match=re.escape("messages[1].content[1].input")):
        chat_of(user("a"), assistant([SEARCH, {**use(), "input": 5}]), user("b"))


def test_documents_and_results_of_searches_are_their_text() -> None:
    assert chat_of(user([DOCUMENT, LISTED, SEARCHED, text_block("d")])).messages == [user("doc\na\nb\nc\nd")]
    reference = {"type": "tool_reference", "tool_name": "get_time"}
    turns = [user("a"), assistant([use(x=1)]), user([result([reference, SEARCHED, DOCUMENT])])]
    assert chat_of(*turns).messages[-1] == tool_message("get_time\nc\ndoc")
    content = {**DOCUMENT, "source": {"type": "content", "content": "whole"}}
    assert chat_of(user([content])).messages == [user("whole")]


# --- what is refused --------------------------------------------------------------------------------------

SCHEMA = {"input_schema": {"type": "object"}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages must have at least one message"),
    ({"messages": "hi"}, "messages:"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role must be one of user, assistant, system"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content must be"),
    ({"messages": [user([])]}, "messages[0].content must be"),
    ({"messages": [user("x"), user([5])]}, "messages[1].content[0]"),
    ({"messages": [user([{"type": ["text"]}])]}, "messages[0].content[0]"),
    ({"messages": [user([{"type": "text"}])]}, "messages[0].content[0].text must be a string"),
    ({"messages": [user([text_block("x"), {"type": "image", "source": {}}])]}, "takes text only"),
    ({"messages": [user([{"type": "document", "source": {}}])]}, 'takes text only, in a "document"'),
    ({"messages": [user([use()])]}, '"tool_use"'),
    ({"messages": [user([{"type": "thinking", "thinking": "x"}])]}, '"thinking"'),
    ({"messages": [assistant([result()]), user("x")]}, '"tool_result"'),
    ({"messages": [user([{"type": "server_tool_use"}])]}, "messages has no block that the model is shown"),
    ({"messages": [user([{"type": "document", "source": {"type": "base64"}}])]}, "messages[0].content[0].source"),
    ({"messages": [user([{"type": "document", "source": {"type": "text"}}])]}, "messages[0].content[0].source.data"),
    ({"messages": [user([{"type": "search_result"}])]}, "messages[0].content[0].content must be"),
    ({"messages": [user([result([{"type": "tool_reference"}])])]}, "messages[0].content[0].content[0].tool_name"),
    ({"messages": [user([{"type": "tool_reference", "tool_name": "f"}])]}, '"tool_reference"'),
    ({"messages": [assistant([{"type": "thinking"}])]}, "messages[0].content[0].thinking must be a string"),
    ({"messages": [user([result([{"type": "image"}])])]}, "messages[0].content[0].content[0]"),
    ({"messages": [user([{**result(), "tool_use_id": 5}])]}, "messages[0].content[0].tool_use_id"),
    ({"messages": [assistant([{**use(), "input": "{}"}]), user("x")]}, "messages[0].content[0].input"),
    ({"messages": [assistant([{**use(), "name": None}]), user("x")]}, "messages[0].content[0].name"),
    ({"messages": [assistant([{**use(), "id": None}]), user("x")]}, "messages[0].content[0].id"),
    ({"messages": [user("x"), assistant([use()])]}, "tool_result"),
    ({"messages": [{**user("x"), "name": "y"}]}, "unknown parameter 'messages[0].name'"),
    ({"system": 5}, "system must be"),
    ({"system": [{"type": "image"}]}, "system[0]"),
    ({"max_tokens": None}, "max_tokens is required"),
    ({"max_tokens": -1}, "max_tokens: must be greater than or equal to 0"),
    ({"max_tokens": "5"}, "max_tokens:"),
    ({"temperature": 2.5}, "temperature: must be less than or equal to 2"),
    ({"top_p": 2}, "top_p:"),
    ({"stop_sequences": ["a"] * 5}, "stop_sequences takes at most 4 entries, got 5"),
    ({"stop_sequences": "a"}, "stop_sequences:"),
    ({"stop_sequences": ["a"], "stop": "b"}, "stop_sequences"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema must be"),
    ({"tools": [{"type": "telepathy_20250305", "name": "read"}]}, 'tools[0].type "telepathy_20250305"'),
    ({"tools": [{"name": "f", "defer_loading": "x", **SCHEMA}]}, "tools[0].defer_loading must be a boolean"),
    ({"tools": [{"name": "f", "allowed_callers": ["code"], **SCHEMA}]}, "tools[0].allowed_callers must have"),
    ({"tools": [{"name": "f", "colour": 1, **SCHEMA}]}, "unknown parameter 'tools[0].colour'"),
    ({"tool_choice": "auto"}, "tool_choice:"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type:"),
    ({"tool_choice": {"kind": "auto"}}, "unknown parameter 'tool_choice.kind'"),
    ({"tools": [TIME], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice.name must name one of the tools"),
    ({"tools": [TIME], "tool_choice": {"type": "tool"}}, "tool_choice.name must name one of the tools"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type:"),
    ({"thinking": {"budget_tokens": 5}}, "thinking.type is required"),
    ({"thinking": {"type": "enabled", "display": "sung"}}, "thinking.display:"),
    ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens:"),
    ({"output_config": {"task_budgets": {}}}, "unknown parameter 'output_config.task_budgets'"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format must be"),
    ({"output_format": {"type": "json_schema"}}, "output_format must be"),
    ({"output_format": {"type": "a"}, "output_config": {"format": {"type": "a"}}}, "output_format and output_config"),
    ({"temprature": 1}, "unknown parameter 'temprature'"),
    ({"n": 2}, "n is not supported: there is one answer to a request here"),
]


@pytest.mark.parametrize(("body", "text"), WRONG)
def test_what_is_wrong_is_named(body: dict[str, Any], text: str) -> None:
    sent = {"max_tokens": 5, "messages": [user("x")], **body}
    for parse in (parse_messages, parse_message_count) if sent["max_tokens"] else (parse_messages,):
        with pytest.raises(InvalidRequestError, match=re.escape(text)) as error:
            to_chat_body(parse(sent))
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"tools": [{"name": "a b", **SCHEMA}]}, "tools[0].name must be 1 to 128 letters"),
        ({"tools": [{"name": "a" * 129, **SCHEMA}]}, "tools[0].name must be 1 to 128 letters"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, 'tools[0].input_schema.type must be "object"'),
        ({"tools": [{"name": "f", "description": 5, **SCHEMA}]}, "tools[0].description must be a string"),
        ({"tools": [TIME, TIME]}, "get_time"),
        ({"tool_choice": {"type": "any"}}, "tool_choice needs tools"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"system": {}}, "system must be a string or a list of blocks"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"messages": [user([text_block("x"), {"type": "image", "source": {}}])]}, "takes text only"),
    ],
)
@pytest.mark.parametrize("path", [PATH, COUNT])
async def test_what_is_wrong_is_a_400_also_for_counting(
    thinker: Serving, path: str, body: dict[str, Any], text: str
) -> None:
    for is_streamed in (False, True):
        sent = {"max_tokens": 5, "messages": [user("x")], "stream": is_streamed, **body}
        error = anthropic_error_of(await thinker.post(path, **sent), 400)
        assert error["type"] == "invalid_request_error"
        assert text in error["message"]


@pytest.mark.parametrize(
    ("blamed", "named"),
    [
        ("response_format.json_schema.schema", "output_config.format.schema"),
        ("reasoning_effort", "output_config.effort"),
        ("tools[3].parameters.properties", "tools[3].input_schema.properties"),
        ("continue_final_message", "messages"),
        ("temperature", "temperature"),
    ],
)
def test_errors_name_the_parameters_of_this_api(blamed: str, named: str) -> None:
    body = parse_message_count({"messages": [user("x")]})
    with pytest.raises(InvalidRequestError) as caught, naming_parameters(parameter_names(body)):
        raise InvalidRequestError(f"{blamed} is wrong: {blamed}, said the template", blamed)
    assert (caught.value.param, str(caught.value)) == (named, f"{named} is wrong: {blamed}, said the template")
    old = parse_message_count({"messages": [user("x")], "output_format": {"type": "json_schema", "schema": {}}})
    with (
        pytest.raises(InvalidRequestError, match=r"^output_format\.schema is"),
        naming_parameters(parameter_names(old)),
    ):
        raise InvalidRequestError("response_format.json_schema.schema is", "response_format.json_schema.schema")


async def test_tools_need_a_model_that_knows_them(served: Serving) -> None:
    error = anthropic_error_of(await send(served, tools=[WEATHER]), 400)
    assert "tools" in error["message"]


@pytest.mark.parametrize("name", [name for name, row in IGNORED.items() if "messages" in row.endpoints])
def test_ignored_parameters_are_accepted_with_any_value(name: str) -> None:
    for value in ("x", 5, {"a": [1]}, True):
        assert chat_of(user("x"), **{name: value}) == chat_of(user("x"))


@pytest.mark.parametrize("name", [name for name, row in REFUSED.items() if "messages" in row.endpoints])
def test_refused_parameters_are_named(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} is not supported"):
        parse_messages({"messages": [user("x")], "max_tokens": 1, name: [{"a": "b"}]})


@pytest.mark.parametrize(
    ("asked", "is_refused"),
    [
        ({"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, False),
        ({"edits": []}, False),
        ({}, False),
        ({"edits": [{"type": "clear_thinking_20251015"}]}, True),
        ({"edits": [{"keep": "all"}, {"type": "clear_tool_uses_20250919"}]}, True),
        ({"edits": "x"}, True),
        ([5], True),
    ],
)
def test_a_management_of_the_context_may_say_that_all_is_kept(asked: Any, is_refused: bool) -> None:
    if not is_refused:
        assert chat_of(user("x"), context_management=asked) == chat_of(user("x"))
        return
    with pytest.raises(InvalidRequestError, match="context_management is not supported"):
        chat_of(user("x"), context_management=asked)


MANY = 150_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        {"messages": [5] * MANY},
        {"messages": [user([{}] * MANY)]},
        {"messages": [user([result("x")] * 60_000)]},
        {"messages": [user([text_block("x")] * 60_000)]},
        {"messages": [dict.fromkeys(map(str, range(MANY)), 1)]},
        {"system": [{}] * MANY},
        {"thinking": dict.fromkeys(map(str, range(MANY)), 1)},
        {"output_config": dict.fromkeys(map(str, range(MANY)), 1)},
        {"tool_choice": dict.fromkeys(map(str, range(MANY)), 1)},
        {"tools": [{**TIME, **dict.fromkeys(map(str, range(MANY)), 1)}]},
        {"stop_sequences": ["a"] * MANY},
    ],
)
async def test_a_body_with_far_too_many_of_something_is_refused_in_no_time(
    thinker: Serving, body: dict[str, Any]
) -> None:
    # hundreds of thousands where each entry looks at all others
    with at_most_as_long_as_parsing(json.dumps(body).encode(), times=1000):
        anthropic_error_of(await send(thinker, **body), 400)


# --- counting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"system": "Be kind."},
        {"tools": [WEATHER, TIME]},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
        {"messages": [user("a"), assistant([use()]), user([result(), text_block("b")])]},
        {"messages": [user("a"), assistant("The")]},
    ],
)
async def test_as_many_tokens_are_counted_as_a_message_has(thinker: Serving, body: dict[str, Any]) -> None:
    usage = (await message(thinker, **body))["usage"]
    assert await count(thinker, **body) == usage["input_tokens"] + usage["cache_read_input_tokens"]


async def test_counting_runs_nothing(tmp_path: Path) -> None:
    executor = FakeExecutor()
    async with serving(tmp_path, executor, info={"max_model_len": 8}) as served:
        assert await count(served, "much longer than the context") > 8
        assert not [plan for plan in executor.plans if plan.scheduled]


# --- errors -----------------------------------------------------------------------------------------------


async def test_unknown_models_routes_and_methods_have_the_shape(served: Serving) -> None:
    error = anthropic_error_of(await send(served, model="claude"), 404)
    assert error["type"] == "not_found_error"
    assert "claude" in error["message"]
    assert anthropic_error_of(await served.post(COUNT, messages=[user("x")], model="claude"), 404)
    for path in ("/v1/messages/", "/v1/messages/batches"):
        assert anthropic_error_of(await served.client.get(path), 404)["type"] == "not_found_error"
    response = await served.client.get(PATH)
    assert anthropic_error_of(response, 405)["type"] == "invalid_request_error"
    assert response.headers["allow"] == "POST"
    assert set((await served.client.get("/v1/messagesX")).json()) == {"error"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "kind"),
    [
        (b"{", {"content-type": "application/json"}, 400, "invalid_request_error"),
        (b"{}", {"content-type": "text/plain"}, 415, "invalid_request_error"),
        (b"{}", {"content-type": "application/json", "content-length": "999999999999"}, 413, "request_too_large"),
    ],
)
@pytest.mark.parametrize("path", [PATH, COUNT])
async def test_bodies_that_cannot_be_read_have_the_shape(
    served: Serving, path: str, content: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    error = anthropic_error_of(await served.client.post(path, content=content, headers=headers), status)
    assert error["type"] == kind


async def test_a_missing_or_wrong_key_has_the_shape(tmp_path: Path) -> None:
    async with serving(tmp_path, api_key=("good",)) as served:
        assert anthropic_error_of(await send(served), 401)["type"] == "authentication_error"
        served.client.headers["x-api-key"] = "bad"
        assert anthropic_error_of(await send(served), 401)["type"] == "authentication_error"
        served.client.headers["x-api-key"] = "good"
        assert (await send(served)).status_code == 200


async def test_more_than_the_context_holds_is_refused_with_both_numbers(served: Serving) -> None:
    error = anthropic_error_of(await send(served, max_tokens=1000), 400)
    assert "1000" in error["message"]
    assert "256" in error["message"]


async def test_a_full_queue_is_a_rate_limit(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate), info={"max_num_seqs": 1}, max_queue_len=2) as served:
        stream = served.engine.submit(generation_request("first", 3))
        response = await send(served)
        assert anthropic_error_of(response, 429)["type"] == "rate_limit_error"
        assert 1 <= int(response.headers["retry-after"]) <= 120
        stream.abort()
        gate.open()


async def test_a_deadline_that_passes_is_a_timeout(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate)) as served:
        assert anthropic_error_of(await send(served, timeout=0.05), 408)["type"] == "timeout_error"
        gate.open()
        await until(lambda: served.engine.num_running == 0)


async def test_a_server_that_takes_nothing_new_is_overloaded(served: Serving) -> None:
    served.app.state.context.intake.close()
    response = await send(served)
    assert anthropic_error_of(response, 503)["type"] == "overloaded_error"
    assert "retry-after" in response.headers
    anthropic_error_of(await served.post(COUNT, messages=[user("x")]), 503)


async def test_a_fault_of_ours_shows_nothing_of_its_inside(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(served.engine, "submit", fail)
    response = await send(served)
    assert anthropic_error_of(response, 500)["type"] == "api_error"
    assert "secret" not in response.text


def fails_from(first_step: int) -> Callable[[StepPlan], None]:
    num_steps = 0

    def fail_later(plan: StepPlan) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps >= first_step:
            raise RuntimeError("secret")

    return fail_later


async def test_a_fault_before_the_first_token_is_a_response_even_for_a_stream(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(before_step=fails_from(1))) as served:
        response = await send(served, stream=True)
        assert anthropic_error_of(response, 500)["type"] == "api_error"
        assert "secret" not in response.text


async def test_a_fault_in_a_stream_is_an_event_and_its_last(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(before_step=fails_from(4))) as served:
        response = await send(served, stream=True)
        *events, last = named_events(response.text)
        assert events[0]["type"] == "message_start"
        assert not {"message_delta", "message_stop"} & {event["type"] for event in events}
        assert set(last) == {"type", "error"}
        assert last["error"]["type"] == "api_error"
        assert "secret" not in response.text


async def test_versions_and_betas_are_accepted(served: Serving) -> None:
    served.client.headers.update({"anthropic-version": "2023-06-01", "anthropic-beta": "a,b"})
    response = await served.client.post(PATH + "?beta=true", json={"max_tokens": 5, "messages": [user("x")]})
    assert answer_of(response)["content"]
    more = {"betas": ["a"], "anthropic_beta": "b", "output_config": {"task_budget": {"type": "tokens", "total": 9}}}
    assert (await served.post(PATH, max_tokens=5, messages=[user("x")], **more)).status_code == 200


async def test_a_message_needs_no_http(served: Serving) -> None:
    generation = await start_message(served.app.state.context, {"messages": [user("x")], "max_tokens": 5})
    assert not generation.is_streamed
    assert json.loads(b"".join(await generation.whole()))["content"] == [{"type": "text", "text": "Hello"}]


async def test_the_openapi_document_has_the_bodies_and_the_shape_of_errors(served: Serving) -> None:
    document = answer_of(await served.client.get("/openapi.json"))
    for path in (PATH, COUNT):
        operation = document["paths"][path]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": "#/components/schemas/MessagesBody"}
        error = operation["responses"]["400"]["content"]["application/json"]["schema"]
        assert error == {"$ref": "#/components/schemas/AnthropicError"}
    assert {"MessagesBody", "AnthropicError"} <= set(document["components"]["schemas"])


# --- models of Anthropic's --------------------------------------------------------------------------------


async def test_a_model_of_anthropics_is_answered_by_the_served_one(
    served: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "orcinus.server.context"):
        for _ in range(2):
            assert (await message(served, model="claude-opus-4-8"))["model"] == "fake-model"
        await count(served, model="claude-opus-4-8")
        await count(served, model="claude-haiku-4-5")
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"'{name}' is not served: fake-model answers in its place" for name in ("claude-opus-4-8", "claude-haiku-4-5")
    ]


async def test_other_unknown_models_and_other_apis_stay_not_found(served: Serving) -> None:
    for name in ("claude", "gpt-5", "other/claude-opus-4-8"):
        assert "does not exist" in anthropic_error_of(await send(served, model=name), 404)["message"]
    chat = await served.post("/v1/chat/completions", messages=[user("hi")], model="claude-opus-4-8")
    assert chat.status_code == 404


async def test_a_served_model_of_that_name_is_meant_by_it(tmp_path: Path) -> None:
    names = ("first", "claude-opus-4-8")
    async with serving(tmp_path, served_model_name=names) as served:
        assert (await message(served, model="claude-opus-4-8"))["model"] == "first"
        assert "_stand_ins" in vars(served.app.state.context)
        assert not served.app.state.context._stand_ins


async def test_a_context_that_is_too_short_is_told_in_numbers(served: Serving) -> None:
    length = await count(served, "x" * 150)
    told = anthropic_error_of(await send(served, "x" * 150, max_tokens=200), 400)["message"]
    assert told == f"input length and `max_tokens` exceed context limit: {length} + 200 > 256"
    told = anthropic_error_of(await send(served, "x" * 300, max_tokens=200), 400)["message"]
    assert told == f"prompt is too long: {length + 150} tokens > 255 maximum"
