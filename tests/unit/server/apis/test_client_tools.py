"""Tools that are no plain functions: custom tools and namespaces, which clients run, and hosted ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response

from orcinus.server.reading.client_calls import ClientCallReader, ClientTool, read_input
from orcinus.server.reading.pieces import Content, Piece, ToolCallArguments, ToolCallStart
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.engine.text.test_chat_template import MISTRAL
from tests.unit.server.apis.test_responses import events_of as response_events
from tests.unit.server.serving import Serving, answer_of, error_of, events_of, serving, user

TEMPLATE = (
    "{{ tools | tojson if tools }}{% for m in messages %}<|start|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
)
PATCH = '*** Begin\n+"x"\n'
ROOM = {"max_model_len": 4096, "num_kv_blocks": 512}
LARK = {"syntax": "lark", "definition": "start: /x+/"}
CHAT_CUSTOM = {
    "type": "custom",
    "custom": {"name": "apply", "description": "Edit.", "format": {"type": "grammar", "grammar": LARK}},
}
CUSTOM = {"type": "custom", "name": "apply", "description": "Edit.", "format": {"type": "grammar", **LARK}}
ADD = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
NAMESPACE = {"type": "namespace", "name": "crm", "description": "Customers", "tools": [ADD, {**CUSTOM, "name": "note"}]}


def calls(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def saying(tmp_path: Path, text: str, **settings: Any) -> Any:
    return serving(tmp_path, FakeExecutor(says(text)), template=TEMPLATE, info=ROOM, **settings)


async def prompt_of(served: Serving, **body: Any) -> str:
    tokens = answer_of(await served.post("/tokenize", messages=[user("hi")], **body))["tokens"]
    text: str = answer_of(await served.post("/detokenize", tokens=tokens))["prompt"]
    return text


async def test_a_custom_tool_of_a_chat_is_a_function_of_one_text_to_the_model(tmp_path: Path) -> None:
    async with saying(tmp_path, calls("apply", input=PATCH)) as served:
        shown = json.loads((await prompt_of(served, tools=[CHAT_CUSTOM])).partition("<|start|>")[0])
        [function] = [tool["function"] for tool in shown]
        assert function["name"] == "apply"
        assert function["description"] == "Edit.\nThe input matches this Lark grammar:\nstart: /x+/"
        assert list(function["parameters"]["properties"]) == function["parameters"]["required"] == ["input"]
        [choice] = (await served.chat(tools=[CHAT_CUSTOM]))["choices"]
        [call] = choice["message"]["tool_calls"]
        assert (call["type"], call["custom"]) == ("custom", {"name": "apply", "input": PATCH})
        assert choice["finish_reason"] == "tool_calls"
        chunks = events_of(
            (await served.post("/v1/chat/completions", messages=[user("x")], tools=[CHAT_CUSTOM], stream=True)).text
        )
        parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
        assert parts[0]["custom"] == {"name": "apply", "input": ""}
        assert "".join(part["custom"]["input"] for part in parts) == PATCH


async def test_a_call_of_a_custom_tool_can_be_sent_back(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "custom", "custom": {"name": "apply", "input": "é"}}
    messages = [user("hi"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    async with saying(tmp_path, "x") as served:
        tokens = answer_of(await served.post("/tokenize", messages=messages))["tokens"]
        shown = answer_of(await served.post("/detokenize", tokens=tokens))["prompt"]
        assert '<tool_call>{"name": "apply", "arguments": {"input": "é"}}</tool_call>' in shown
        wrong = [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f"}}]}]
        assert (
            error_of(await served.post("/tokenize", messages=wrong), 400)["param"]
            == "messages[0].tool_calls[0].function"
        )


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_custom_tools_and_namespaces_of_a_response_come_back_as_they_were_sent(
    tmp_path: Path, is_streamed: bool
) -> None:
    said = calls("apply", input=PATCH) + calls("crm__add", a=1) + calls("crm__note", input="n") + calls("add", a=2)
    async with saying(tmp_path, said) as served:
        response = await served.post("/v1/responses", input="x", tools=[CUSTOM, NAMESPACE, ADD], stream=is_streamed)
        if is_streamed:
            *_, last = events = list(response_events(response.text))
            answer = last["response"]
            deltas = [event for event in events if event["type"] == "response.custom_tool_call_input.delta"]
            assert [event["delta"] for event in deltas] == [PATCH, "n"]
        else:
            answer = answer_of(response)
        Response.model_validate(answer, strict=True)
        items = [
            {name: item[name] for name in item if name not in ("id", "call_id", "status")} for item in answer["output"]
        ]
        assert items == [
            {"type": "custom_tool_call", "name": "apply", "input": PATCH},
            {"type": "function_call", "name": "add", "namespace": "crm", "arguments": '{"a": 1}'},
            {"type": "custom_tool_call", "name": "note", "namespace": "crm", "input": "n"},
            {"type": "function_call", "name": "add", "arguments": '{"a": 2}'},
        ]
        assert [tool["type"] for tool in answer["tools"]] == ["custom", "namespace", "function"]
        outputs = [
            {
                "type": f"{item['type']}_output".replace("call_output", "call_output"),
                "call_id": item["call_id"],
                "output": "ok",
            }
            for item in answer["output"]
        ]
        again = await served.post(
            "/v1/responses", input=["x" and {"role": "user", "content": "x"}, *answer["output"], *outputs]
        )
        assert answer_of(again)["status"] == "completed"


async def test_custom_tools_can_be_chosen(tmp_path: Path) -> None:
    async with saying(tmp_path, calls("apply", input=PATCH)) as served:
        for choice in (
            {"type": "custom", "name": "apply"},
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "custom", "name": "apply"}, {"type": "web_search"}],
            },
            {"type": "function", "name": "add", "namespace": "crm"},
        ):
            await served.post("/v1/responses", input="x", tools=[CUSTOM, NAMESPACE], tool_choice=choice)
            response = await served.post("/v1/responses", input="x", tools=[CUSTOM, NAMESPACE], tool_choice=choice)
            assert response.status_code == 200, response.text
        chosen = {"type": "custom", "custom": {"name": "apply"}}
        assert (await served.chat(tools=[CHAT_CUSTOM], tool_choice=chosen))["choices"]
        unknown = {"type": "custom", "name": "x"}
        error = error_of(await served.post("/v1/responses", input="x", tools=[CUSTOM], tool_choice=unknown), 400)
        assert error["param"] == "tool_choice.name"


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "custom"}, "tools[1].name"),
        ({**CUSTOM, "name": "a b"}, "tools[1].name"),
        ({**CUSTOM, "format": {"type": "grammar", "syntax": "peg", "definition": "x"}}, "tools[1].format"),
        ({**CUSTOM, "format": 5}, "tools[1].format"),
        ({**NAMESPACE, "tools": 5}, "tools[1].tools"),
        ({**NAMESPACE, "tools": [5]}, "tools[1].tools[0]"),
        ({**NAMESPACE, "tools": [ADD, ADD]}, "tools[1].tools[1].name"),
        ({**NAMESPACE, "tools": [{**ADD, "parameters": 5}]}, "tools[1].tools[0].parameters"),
        ({**NAMESPACE, "tools": [{"type": "web_search"}]}, "tools[1].tools[0].type"),
        ({**NAMESPACE, "name": None}, "tools[1].name"),
        ({**ADD, "name": "a" * 65}, "tools[1].name"),
        ({"type": "telepathy"}, "tools[1].type"),
    ],
)
async def test_tools_that_are_wrong_are_named_by_their_place_in_the_body(tmp_path: Path, tool: Any, param: str) -> None:
    async with saying(tmp_path, "x") as served:
        error = error_of(await served.post("/v1/responses", input="x", tools=[{"type": "web_search"}, tool]), 400)
        assert error["param"] == param
        assert param in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "places"),
    [
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}, ADD]}, "tools[0]=web_search"),
        (
            "/v1/responses",
            {"input": "x", "tools": [ADD, {"type": "mcp", "server_label": "l"}, {"type": "image_generation"}]},
            "tools[1]=mcp, tools[2]=image_generation",
        ),
        ("/v1/chat/completions", {"messages": [user("x")], "tools": [{"type": "web_search"}]}, "tools[0]=web_search"),
        (
            "/v1/messages",
            {"messages": [user("x")], "max_tokens": 5, "tools": [{"type": "bash_20250124", "name": "bash"}]},
            "tools[0]=bash_20250124",
        ),
        (
            "/v1/messages/count_tokens",
            {"messages": [user("x")], "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools[0]=web_search_20250305",
        ),
        ("/tokenize", {"messages": [user("x")], "tools": [{"type": "web_search"}]}, "tools[0]=web_search"),
        (
            "/v1/chat/completions",
            {
                "messages": [user("x")],
                "tools": [
                    {"type": "openrouter:web_search"},
                    {"type": "builtin_function", "function": {"name": "$web_search"}},
                ],
            },
            "tools[0]=openrouter%3Aweb_search, tools[1]=builtin_function",
        ),
    ],
)
async def test_hosted_tools_are_left_out_and_named(
    tmp_path: Path, path: str, body: dict[str, Any], places: str
) -> None:
    async with saying(tmp_path, "x") as served:
        for is_streamed in (False, *([True] if path.startswith("/v1") and "count" not in path else [])):
            response = await served.post(path, **body, **({"stream": True} if is_streamed else {}))
            assert response.status_code == 200, response.text
            assert response.headers["x-orcinus-left-out"] == places
        assert "x-orcinus-left-out" not in (await served.post("/v1/completions", prompt="x")).headers


HOSTED_ALONE: list[tuple[str, dict[str, Any], Any]] = [
    ("/v1/responses", {"input": "x"}, "required"),
    ("/v1/responses", {"input": "x"}, {"type": "web_search"}),
    ("/v1/chat/completions", {"messages": [user("x")]}, "required"),
    ("/v1/messages", {"messages": [user("x")], "max_tokens": 5}, {"type": "any"}),
    ("/v1/messages", {"messages": [user("x")], "max_tokens": 5}, {"type": "tool", "name": "web_search"}),
]


@pytest.mark.parametrize(("path", "body", "choice"), HOSTED_ALONE)
async def test_a_choice_of_a_tool_that_is_left_out_says_so(
    served: Serving, path: str, body: dict[str, Any], choice: Any
) -> None:
    hosted = {"type": "web_search", "name": "web_search"}
    own = {"name": "f", "input_schema": {}} if path == "/v1/messages" else ADD
    names_one = isinstance(choice, dict) and choice["type"] != "any"
    for tools in [[hosted], [hosted, own]] if names_one else [[hosted]]:
        response = await served.post(path, **body, tools=tools, tool_choice=choice)
        assert response.status_code == 400
        assert re.search('left out are "[^"]*web_search"', response.json()["error"]["message"])


@pytest.mark.parametrize("tools", [[{"type": "web_search"}], [{"type": "web_search"}, ADD]])
async def test_tools_that_are_allowed_and_left_out_ask_for_nothing(tmp_path: Path, tools: list[Any]) -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}
    async with saying(tmp_path, "x") as served:
        response = await served.post("/v1/responses", input="x", tools=tools, tool_choice=choice)
        assert response.status_code == 200, response.text
        forced = {**choice, "mode": "required"}
        error = error_of(await served.post("/v1/responses", input="x", tools=tools, tool_choice=forced), 400)
        assert error["param"] == "tool_choice.tools"
        assert "web_search" in error["message"]
        inside = {name: choice[name] for name in ("mode", "tools")}
        of_chat = {"type": "allowed_tools", "allowed_tools": inside}
        chat_tools = [{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}]
        assert (await served.chat(tools=chat_tools, tool_choice=of_chat))["choices"]


# --- templates that want turns -----------------------------------------------------------------------------


async def test_clients_of_every_api_are_answered_where_the_template_wants_turns(tmp_path: Path) -> None:
    """The first turn of Codex, and Claude Code's after a tool, whose ids are not those that the template takes."""
    developer, environment = {"role": "developer", "content": "rules"}, user("<environment>")
    used = {"type": "tool_use", "id": "toolu_01A", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_01A", "content": "4"}
    text = {"type": "text", "text": "<reminder>"}
    turns = [user("hi"), {"role": "assistant", "content": [text, used]}, user([result, text])]
    call = {"type": "function_call", "call_id": "call_abc", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_abc", "output": "4"}
    async with serving(tmp_path, FakeExecutor(says("x")), template=MISTRAL, info=ROOM) as served:
        for path, body in (
            ("/v1/responses", {"instructions": "You are Codex", "input": [developer, environment, user("Hi")]}),
            ("/v1/responses", {"input": [user("Hi"), call, output, user("on")]}),
            ("/v1/chat/completions", {"messages": [user("a"), user("b")]}),
            ("/v1/messages", {"messages": turns, "max_tokens": 5}),
        ):
            response = await served.post(path, **body)
            assert response.status_code == 200, response.text
        tokens = answer_of(await served.post("/tokenize", messages=[user("a"), user("b")]))["tokens"]
        assert answer_of(await served.post("/detokenize", tokens=tokens))["prompt"] == "<user>a\n\nb"


# --- reading ----------------------------------------------------------------------------------------------


class Scripted:
    """A reader whose pieces come in the given groups."""

    num_tool_calls = 0

    def __init__(self, *groups: list[Piece]) -> None:
        self._groups = list(groups)

    def feed(self, text: str) -> list[Piece]:
        group = self._groups.pop(0)
        self.num_tool_calls += sum(isinstance(piece, ToolCallStart) for piece in group)
        return group

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        return []


def test_an_input_comes_whole_before_what_follows_it() -> None:
    tools = {"f": ClientTool("f", is_custom=True)}
    reader = ClientCallReader(
        Scripted(
            [Content("a"), ToolCallStart(0, "c0", "f"), ToolCallArguments(0, '{"inp')],
            [ToolCallArguments(0, 'ut": "x'), ToolCallArguments(0, 'y"}'), ToolCallStart(1, "c1", "g")],
            [ToolCallArguments(1, "{}"), ToolCallStart(2, "c2", "f"), ToolCallArguments(2, '{"input": "cut o')],
        ),
        tools,
    )
    start = ToolCallStart(0, "c0", "f", True)
    assert reader.feed("") == [Content("a"), start]
    assert reader.feed("") == [ToolCallArguments(0, "xy", True), ToolCallStart(1, "c1", "g")]
    assert reader.feed("") == [ToolCallArguments(1, "{}"), ToolCallStart(2, "c2", "f", True)]
    assert reader.finish() == [ToolCallArguments(2, "cut o", True)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\n\\u00e9"}', "a\né"),
        ('{"input": "a', "a"),
        ("", ""),
        ("{}", ""),
        ('{"input": 5}', '{"input": 5}'),
        ("[1]", "[1]"),
        ("no json", "no json"),
    ],
)
def test_the_input_is_the_text_in_the_arguments(arguments: str, text: str) -> None:
    assert read_input(arguments) == text
