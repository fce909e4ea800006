"""Tool calls of chat completions."""

import json
from typing import Any

from tests.conformance.api import Api, talk
from tests.conformance.registry import row

QUESTION = "What is the weather in Paris?"
RESULT = '{"temperature": 21, "condition": "sunny"}'


def tool(name: str, description: str, **types: str) -> dict[str, Any]:
    properties = {argument: {"type": kind} for argument, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(types), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool("get_weather", "Get the weather in a city", city="string")
TIMER = tool("set_timer", "Set a timer", minutes="integer")


def check_call(call: dict[str, Any], name: str, **arguments: Any) -> None:
    assert set(call) == {"id", "type", "function"}
    assert call["type"] == "function"
    assert call["function"]["name"] == name
    assert json.loads(call["function"]["arguments"]) == arguments


def joined_calls(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls that the deltas of choice 0 make up, put together as clients do it."""
    calls: list[dict[str, Any]] = []
    for delta in (part for c in chunks for part in c["choices"][0]["delta"].get("tool_calls", [])):
        if delta["index"] == len(calls):
            calls.append({"id": delta["id"], "type": delta["type"], "function": {**delta["function"]}})
        else:
            assert "id" not in delta
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return calls


@row("tools.call", "A call has an id, a name and arguments as JSON text; finish_reason is `tool_calls`, content null")
def call(api: Api) -> None:
    [choice] = api.chat(QUESTION, tools=[WEATHER, TIMER])["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    [made] = choice["message"]["tool_calls"]
    check_call(made, "get_weather", city="Paris")


@row("tools.round_trip", "A tool's result, sent back with the call, is what the answer is made of")
def round_trip(api: Api) -> None:
    asked = api.chat(QUESTION, tools=[WEATHER])["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": asked["tool_calls"][0]["id"], "content": RESULT}
    [choice] = api.chat([*talk(QUESTION), asked, result], tools=[WEATHER])["choices"]
    assert "sunny" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"


@row("tools.tokenize", "/tokenize counts tools as the template writes them")
def tokenized(api: Api) -> None:
    rendered = api.ask("POST", "/tokenize", {"messages": talk(QUESTION), "tools": [WEATHER]})
    assert rendered["count"] == api.chat(QUESTION, tools=[WEATHER])["usage"]["prompt_tokens"]


@row("tools.as_sent", "The template is shown tools as they were sent: every key, in the client's order")
def as_sent(api: Api) -> None:
    function = {"x-note": None, "parameters": WEATHER["function"]["parameters"], "name": "get_weather"}
    body = {"messages": talk(QUESTION), "tools": [{"function": function, "type": "function"}]}
    token_ids = api.ask("POST", "/tokenize", body)["tokens"]
    assert json.dumps(body["tools"][0]) in api.ask("POST", "/detokenize", {"tokens": token_ids})["prompt"]


@row("tools.stream", "A streamed call begins with id and name, its arguments come in parts, and join to the whole call")
def streamed(api: Api) -> None:
    chunks = api.chat_stream(QUESTION, tools=[WEATHER])
    [made] = joined_calls(chunks)
    check_call(made, "get_weather", city="Paris")
    deltas = [part for c in chunks for part in c["choices"][0]["delta"].get("tool_calls", [])]
    assert deltas[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert len(deltas) > 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@row("tools.no_markup", "Nothing of how the model writes a call reaches the content, streamed or not")
def no_markup(api: Api) -> None:
    chunks = api.chat_stream(QUESTION, tools=[WEATHER])
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)


@row("tools.unneeded", "With tools at hand, a question that needs none is answered")
def unneeded(api: Api) -> None:
    [choice] = api.chat(tools=[WEATHER])["choices"]
    assert "Paris" in choice["message"]["content"]
    assert "tool_calls" not in choice["message"]


@row("tools.none", "`tool_choice: none` makes no call")
def none(api: Api) -> None:
    [choice] = api.chat(QUESTION, tools=[WEATHER], tool_choice="none", max_tokens=40)["choices"]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] in {"stop", "length"}


@row("tools.required", "`tool_choice: required` makes a call of one of the tools, even if drawn at random")
def required(api: Api) -> None:
    body: dict[str, Any] = {"tools": [WEATHER, TIMER], "tool_choice": "required", "parallel_tool_calls": False}
    choices = api.chat(**body, temperature=1.5, seed=1, n=6, max_tokens=200)["choices"]
    assert {choice["finish_reason"] for choice in choices} <= {"tool_calls", "length"}
    complete = [choice for choice in choices if choice["finish_reason"] == "tool_calls"]
    assert complete
    for choice in complete:
        [made] = choice["message"]["tool_calls"]
        check_arguments(made)


def check_arguments(made: dict[str, Any]) -> None:
    arguments = json.loads(made["function"]["arguments"])
    wanted = {"get_weather": {"city": str}, "set_timer": {"minutes": int}}[made["function"]["name"]]
    assert {name: type(value) for name, value in arguments.items()} == wanted


@row("tools.named", "A tool chosen by name is called, with arguments of its schema, though the question is another")
def named(api: Api) -> None:
    choice = {"type": "function", "function": {"name": "set_timer"}}
    answer = api.chat("Set a timer for 7 minutes.", tools=[WEATHER, TIMER], tool_choice=choice)["choices"][0]
    check_call(answer["message"]["tool_calls"][0], "set_timer", minutes=7)
    other = api.chat(QUESTION, tools=[WEATHER, TIMER], tool_choice=choice, max_tokens=100)["choices"][0]
    assert {made["function"]["name"] for made in other["message"]["tool_calls"]} == {"set_timer"}


@row("tools.one_call", "`parallel_tool_calls: false` makes one call at most")
def one_call(api: Api) -> None:
    [choice] = api.chat(
        QUESTION, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, temperature=1.5, seed=1
    )["choices"]
    assert len(choice["message"].get("tool_calls", [])) <= 1


@row("tools.several_choices", "With n > 1 every choice has its own calls, with ids of their own")
def several_choices(api: Api) -> None:
    choices = api.chat(QUESTION, tools=[WEATHER], n=3)["choices"]
    calls = [made for choice in choices for made in choice["message"]["tool_calls"]]
    assert len(calls) == len({made["id"] for made in calls}) == 3


@row("tools.refused", "Tools without a name or of another type, and a choice of none of them, are refused by place")
def refused(api: Api) -> None:
    for body, place in (
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"tools": [WEATHER] * 129}, "tools"),
    ):
        assert (api.refuse_chat(**body)["param"] or "").startswith(place), body
