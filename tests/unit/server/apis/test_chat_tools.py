"""Calls of tools and reasoning in chat completions: what template and engine are given, and the shape of answers."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from orcinus.engine.outputs import RequestOutput
from orcinus.engine.sampling_params import Grammar
from orcinus.server.apis.chat.answer import start_chat_completion
from orcinus.server.apis.chat.body import parse_chat
from orcinus.server.apis.chat_request import prepare_chat
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, answer_of, error_of, events_of, serving, user

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools><tool_call>{% endif %}"
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}CALL {{ call.function.arguments.city }}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
THINKING_TEMPLATE = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ARGUMENTS = '{"city": "Zürich"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'


@pytest.fixture
async def calling(tmp_path: Path) -> AsyncIterator[Serving]:
    room = {"max_model_len": 1024, "num_kv_blocks": 256}
    executor = FakeExecutor(says(f"Well.\n{CALL}\n{CALL}"))
    async with serving(tmp_path, executor, template=TEMPLATE, info=room) as running:
        yield running


async def chunks_of(served: Serving, **body: Any) -> list[ChatCompletionChunk]:
    response = await served.post("/v1/chat/completions", messages=[user("hi")], stream=True, **body)
    return [ChatCompletionChunk.model_validate(event, strict=True) for event in events_of(response.text)]


async def test_calls_are_read_out_of_the_text(calling: Serving) -> None:
    answer = ChatCompletion.model_validate(await calling.chat(tools=[WEATHER]), strict=True)
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Well.", "tool_calls")
    calls = choice.message.tool_calls or []
    assert [(call.type, call.function.name, call.function.arguments) for call in calls if call.type == "function"] == [
        ("function", "get_weather", ARGUMENTS)
    ] * 2
    assert len({call.id for call in calls}) == 2


async def test_a_message_of_calls_alone_has_no_content(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says(CALL)), template=TEMPLATE) as served:
        [choice] = (await served.chat(tools=[WEATHER]))["choices"]
        assert choice["message"]["content"] is None
        assert "reasoning_content" not in choice["message"]


async def test_streamed_calls_join_to_those_of_the_whole_answer(calling: Serving) -> None:
    chunks = await chunks_of(calling, tools=[WEATHER])
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in deltas) == "Well."
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    for index in range(2):
        first, *rest = [part for part in parts if part.index == index]
        assert first.id is not None
        assert first.type == "function"
        assert first.function is not None
        assert (first.function.name, first.function.arguments) == ("get_weather", "")
        assert all(part.id is None for part in rest)
        assert "".join((part.function and part.function.arguments) or "" for part in rest) == ARGUMENTS
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == "tool_calls"
    assert set(reasons[:-1]) == {None}


async def test_a_call_cut_off_by_the_limit_is_no_finished_call(calling: Serving) -> None:
    num_tokens = len(f"Well.\n{CALL}".partition(ARGUMENTS)[0]) + 9
    [choice] = (await calling.chat(tools=[WEATHER], max_tokens=num_tokens))["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == ARGUMENTS[:9]


@pytest.mark.parametrize("written", [len("<tool"), len("<tool_call>"), len(CALL.partition("_weather")[0])])
async def test_a_call_cut_off_before_its_name_is_known_is_no_text(calling: Serving, written: int) -> None:
    asked: dict[str, Any] = {"tools": [WEATHER], "max_tokens": len("Well.\n") + written}
    [choice] = (await calling.chat(**asked))["choices"]
    assert (choice["finish_reason"], choice["message"]["content"].strip()) == ("length", "Well.")
    assert "tool_calls" not in choice["message"]
    deltas = [chunk.choices[0].delta for chunk in await chunks_of(calling, **asked)]
    assert "".join(delta.content or "" for delta in deltas).strip() == "Well."


async def test_arguments_with_line_breaks_are_json_streamed_or_not(tmp_path: Path) -> None:
    call = CALL.replace("Zürich", "Zü\nrich").replace("}}", "}}}")
    room = {"max_model_len": 1024, "num_kv_blocks": 256}
    async with serving(tmp_path, FakeExecutor(says(call)), template=TEMPLATE, info=room) as served:
        [choice] = (await served.chat(tools=[WEATHER]))["choices"]
        assert choice["message"]["content"] is None
        whole = choice["message"]["tool_calls"][0]["function"]["arguments"]
        assert json.loads(whole) == {"city": "Zü\nrich"}
        deltas = [chunk.choices[0].delta for chunk in await chunks_of(served, tools=[WEATHER])]
        assert not any(delta.content for delta in deltas)
        parts = [part.function for delta in deltas for part in delta.tool_calls or []]
        assert "".join((part and part.arguments) or "" for part in parts) == whole


async def test_tools_of_a_model_that_writes_calls_in_an_unknown_way_are_refused(tmp_path: Path) -> None:
    template = TEMPLATE.replace("<tool_call>", "")
    async with serving(tmp_path, FakeExecutor(says(CALL)), template=template) as served:
        error = error_of(await served.post("/v1/chat/completions", messages=[user("x")], tools=[WEATHER]), 400)
        assert error["param"] == "tools"
        assert "no sign of a format of calls that is known" in error["message"]
        assert "--tool-call-parser" in error["message"]


async def test_channels_are_read_streamed_or_not(tmp_path: Path) -> None:
    said = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        f"<|constrain|>json<|message|>{ARGUMENTS}<|call|>"
    )
    template = "{# <|channel|> #}" + TEMPLATE
    room = {"max_model_len": 1024, "num_kv_blocks": 256}
    async with serving(tmp_path, FakeExecutor(says(said)), template=template, info=room) as served:
        [choice] = (await served.chat(tools=[WEATHER]))["choices"]
        assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("Hm.", None)
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
        events = events_of((await served.post("/v1/chat/completions", messages=[user("hi")], stream=True)).text)
        deltas = [event["choices"][0]["delta"] for event in events]
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "Hm."
        assert "".join(delta.get("content") or "" for delta in deltas) == ARGUMENTS  # there were no tools to call


async def test_a_whole_answer_waits_for_the_end_of_a_thought_that_was_not_opened(tmp_path: Path) -> None:
    template = "{# <think> </think> #}" + TEMPLATE
    async with serving(tmp_path, FakeExecutor(says("Hm.</think>Yes.")), template=template) as served:
        [choice] = (await served.chat())["choices"]
        assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("Hm.", "Yes.")
        deltas = [chunk.choices[0].delta for chunk in await chunks_of(served)]
        assert "".join(delta.content or "" for delta in deltas) == "Hm.Yes."


async def test_without_parallel_calls_only_the_first_is_given(calling: Serving) -> None:
    [choice] = (await calling.chat(tools=[WEATHER], parallel_tool_calls=False))["choices"]
    assert len(choice["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("body", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
async def test_without_tools_a_call_is_text(calling: Serving, body: dict[str, Any]) -> None:
    [choice] = (await calling.chat(**body))["choices"]
    assert choice["message"]["content"] == f"Well.\n{CALL}\n{CALL}"
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]


async def test_the_template_is_given_the_tools_and_the_calls_of_the_conversation(calling: Serving) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
    messages = [
        user("hi"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    context = calling.app.state.context
    request = await prepare_chat(context, parse_chat({"messages": messages, "tools": [WEATHER]}), "id")
    prompt = context.engine.tokenizer.decode(request.generation.prompts[0], skip_special_tokens=False)
    tools, _, rest = prompt.removeprefix("<tools>").partition("</tools>")
    assert json.loads(tools) == [WEATHER]
    assert "CALL Zürich<|end|>" in rest
    assert "<|start|>tool\nsunny<|end|>" in rest


async def test_a_required_call_has_a_grammar(calling: Serving) -> None:
    context = calling.app.state.context
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        body = {"messages": [user("x")], "tools": [WEATHER], "tool_choice": choice}
        grammar = (await prepare_chat(context, parse_chat(body), "id")).generation.sampling.grammar
        assert grammar is not None
        assert "get_weather" in grammar.source
    body = {"messages": [user("x")], "tools": [WEATHER]}
    assert (await prepare_chat(context, parse_chat(body), "id")).generation.sampling.grammar is None


async def test_calls_of_strict_tools_have_a_grammar_after_their_opening_where_the_model_may_call(
    calling: Serving,
) -> None:
    context = calling.app.state.context
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    parameters = {"type": "object", "properties": {"not_held_to": {"type": "string"}}, "required": ["not_held_to"]}
    other = {"type": "function", "function": {"name": "other", "parameters": parameters}}
    body: dict[str, Any] = {"messages": [user("x")], "tools": [strict, other]}
    grammar = (await prepare_chat(context, parse_chat(body), "id")).generation.sampling.grammar
    assert grammar is not None
    assert grammar.openings is not None
    assert grammar.openings.openings[0].parts == ("<tool_call>",)
    assert '"city"' in grammar.source
    assert "other" in grammar.source
    assert "not_held_to" not in grammar.source
    for more in ({"tools": [other]}, {"tool_choice": "none"}):
        free = parse_chat({**body, **more})
        assert (await prepare_chat(context, free, "id")).generation.sampling.grammar is None
    refused = {"type": "object", "properties": {"x": {"not": {}}}}
    wrong = {"type": "function", "function": {"name": "wrong", "parameters": refused, "strict": True}}
    error = error_of(await calling.post("/v1/chat/completions", **{**body, "tools": [other, wrong]}), 400)
    assert error["param"] == "tools[1].function.parameters.properties.x"


async def test_tools_for_a_model_without_any_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("x"))) as served:
        error = error_of(await served.post("/v1/chat/completions", messages=[user("x")], tools=[WEATHER]), 400)
        assert error["param"] == "tools"
        assert "--tool-call-parser" in error["message"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_reasoning_is_split_from_content(tmp_path: Path, is_streamed: bool) -> None:
    text = "Let me see.\n</think>\n\nIt is 4."
    async with serving(tmp_path, FakeExecutor(says(text)), template=THINKING_TEMPLATE) as served:
        if is_streamed:
            deltas = [chunk.choices[0].delta.to_dict() for chunk in await chunks_of(served)]
            reasoning = "".join(str(delta.get("reasoning_content", "")) for delta in deltas)
            content = "".join(str(delta.get("content", "")) for delta in deltas)
        else:
            message = (await served.chat())["choices"][0]["message"]
            reasoning, content = message["reasoning_content"], message["content"]
        assert (reasoning, content) == ("Let me see.", "It is 4.")


async def test_a_form_needs_to_know_where_the_thinking_ends(tmp_path: Path) -> None:
    asked = {"messages": [user("x")], "response_format": {"type": "json_object"}}
    async with serving(tmp_path, FakeExecutor(says("x")), template=THINKING_TEMPLATE) as served:
        error = error_of(await served.post("/v1/chat/completions", **asked), 400)
        assert "</think> is no token of its own" in error["message"]
    settings: dict[str, Any] = {"template": THINKING_TEMPLATE, "reasoning_parser": "none"}
    async with serving(tmp_path / "other", FakeExecutor(says("x")), **settings) as served:
        request = await prepare_chat(served.app.state.context, parse_chat(asked), "id")
        assert request.generation.sampling.grammar == Grammar("json_object", param="response_format")


async def test_the_model_may_call_or_answer_in_the_form_that_is_asked_for(calling: Serving) -> None:
    schema = {"type": "object", "properties": {"is_sunny": {"type": "boolean"}}}
    context = calling.app.state.context
    asked = {"messages": [user("x")], "tools": [WEATHER]}
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema}}}
    grammar = (await prepare_chat(context, parse_chat({**asked, **form}), "id")).generation.sampling.grammar
    assert grammar is not None
    assert "start: (calls | answer)" in grammar.source
    assert "is_sunny" in grammar.source
    forced = parse_chat({**asked, **form, "tool_choice": "required"})
    grammar = (await prepare_chat(context, forced, "id")).generation.sampling.grammar
    assert grammar is not None
    assert "is_sunny" not in grammar.source
    error = error_of(await calling.post("/v1/chat/completions", **asked, structured_outputs={"regex": "a"}), 400)
    assert (error["param"], "can only be JSON" in error["message"]) == ("structured_outputs", True)


async def test_tokenize_counts_the_tools_too(calling: Serving) -> None:
    asked = {"messages": [user("x")], "tools": [WEATHER]}
    answer = answer_of(await calling.post("/tokenize", **asked))
    request = await prepare_chat(calling.app.state.context, parse_chat(asked), "id")
    assert answer["tokens"] == request.generation.prompts[0]
    assert answer["count"] > answer_of(await calling.post("/tokenize", messages=[user("x")]))["count"]


class OneTokenEach:
    """A stream of outputs of one character and one token each, the same for every choice."""

    def __init__(self, text: str, num_choices: int) -> None:
        self._outputs = iter(
            RequestOutput(
                index=index,
                text=character,
                token_ids=[ord(character)],
                finish_reason="stop" if number == len(text) - 1 else None,
            )
            for number, character in enumerate(text)
            for index in range(num_choices)
        )

    def __aiter__(self) -> "OneTokenEach":
        return self

    async def __anext__(self) -> RequestOutput:
        for output in self._outputs:
            return output
        raise StopAsyncIteration

    def abort(self) -> None: ...


@pytest.mark.parametrize("n", [1, 3])
async def test_usage_tells_how_many_tokens_were_thoughts_streamed_and_not(tmp_path: Path, n: int) -> None:
    thought = "Hm.</think>"
    expected = {"reasoning_tokens": n * len(thought)}
    async with serving(tmp_path, template=THINKING_TEMPLATE) as served:
        body = {"messages": [user("hi")], "n": n, "stream_options": None}
        generation = await start_chat_completion(served.app.state.context, body)
        generation.stream.abort()
        generation.stream = OneTokenEach(f"{thought}Hi", n)
        assert json.loads(b"".join(await generation.whole()))["usage"]["completion_tokens_details"] == expected

        body = {**body, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        generation = await start_chat_completion(served.app.state.context, body)
        generation.stream.abort()
        outputs = OneTokenEach(f"{thought}Hi", n)
        parts = [part async for output in outputs for part in generation.encode(output)]
        chunks = [*events_of(b"".join([*parts, *generation.encode_end()]).decode())]
        numbers = [chunk["usage"]["completion_tokens_details"]["reasoning_tokens"] for chunk in chunks]
        assert numbers[0] == 0
        assert numbers == sorted(numbers)
        assert chunks[-1]["usage"]["completion_tokens_details"] == expected


async def test_an_answer_without_thoughts_counts_none(served: Serving) -> None:
    assert (await served.chat())["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
