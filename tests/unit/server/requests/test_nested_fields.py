"""Fields that are not known within the objects of a body: a 400 that names the path, or a header that does."""

from pathlib import Path
from typing import Any

import pytest

from orcinus.server.operations import OPERATIONS
from orcinus.server.requests.bodies import Body
from orcinus.server.requests.left_out import HEADER
from orcinus.server.requests.validation import _part_model
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, serving, user

TEMPLATE = (
    "{# <tool_call> #}{% for message in messages %}{{ message.content }}{% endfor %}"
    "{{ tools | tojson if tools else '' }}"
)
ROOM = {"max_model_len": 1024, "num_kv_blocks": 256}
SCHEMA: dict[str, Any] = {"type": "object"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [user("x")]},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [user("x")], "max_tokens": 5},
    "/tokenize": {"messages": [user("x")]},
}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
CUSTOM = {"type": "custom", "custom": {"name": "c", "format": {"type": "text"}}}
FLAT = {"type": "function", "name": "f", "parameters": SCHEMA}
TOOLS: dict[str, Any] = {"tools": [FUNCTION, CUSTOM]}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: x"}


def chat_tool(more: dict[str, Any], **outside: Any) -> dict[str, Any]:
    return {"tools": [{**FUNCTION, "function": {**FUNCTION["function"], **more}, **outside}]}  # type: ignore[dict-item]


def chosen(choice: dict[str, Any], **tools: Any) -> dict[str, Any]:
    return {**(tools or TOOLS), "tool_choice": choice}


# Each object of ours that a client writes, by endpoint: how a field `zz` in it is called, and a body with it.
NESTED: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (path, place, body)
        for path in ("/v1/completions", "/v1/chat/completions")
        for place, body in (
            ("stream_options.zz", {"stream": True, "stream_options": {"zz": 1}}),
            ("response_format.zz", {"response_format": {"type": "text", "zz": 1}}),
            ("structured_outputs.zz", {"structured_outputs": {"json_object": True, "zz": 1}}),
        )
    ),
    *(
        (path, "structured_outputs.zz", {"structured_outputs": {"json_object": True, "zz": 1}})
        for path in ("/v1/responses", "/v1/messages")
    ),
    ("/v1/chat/completions", "thinking.zz", {"thinking": {"type": "enabled", "zz": 1}}),
    ("/v1/chat/completions", "reasoning.zz", {"reasoning": {"zz": 1}}),
    ("/v1/chat/completions", "usage.zz", {"usage": {"zz": 1}}),
    *(
        row
        for path in ("/v1/chat/completions", "/tokenize")
        for row in (
            (path, "tools[0].zz", {"tools": [{**CUSTOM, "zz": 1}]}),
            (path, "tools[0].custom.zz", {"tools": [{"type": "custom", "custom": {"name": "c", "zz": 1}}]}),
            (
                path,
                "tools[0].custom.format.grammar.zz",
                {
                    "tools": [
                        {
                            "type": "custom",
                            "custom": {
                                "name": "c",
                                "format": {
                                    "type": "grammar",
                                    "grammar": {"syntax": "lark", "definition": "start: x", "zz": 1},
                                },
                            },
                        }
                    ]
                },
            ),
        )
    ),
    ("/v1/responses", "stream_options.zz", {"stream": True, "stream_options": {"zz": 1}}),
    ("/v1/responses", "reasoning.zz", {"reasoning": {"zz": 1}}),
    ("/v1/responses", "text.zz", {"text": {"zz": 1}}),
    ("/v1/responses", "text.format.zz", {"text": {"format": {"type": "text", "zz": 1}}}),
    ("/v1/responses", "tools[0].zz", {"tools": [{**FLAT, "zz": 1}]}),
    ("/v1/responses", "tools[0].zz", {"tools": [{"type": "custom", "name": "c", "zz": 1}]}),
    (
        "/v1/responses",
        "tools[0].format.zz",
        {"tools": [{"type": "custom", "name": "c", "format": {**GRAMMAR, "zz": 1}}]},
    ),
    ("/v1/responses", "tools[0].zz", {"tools": [{"type": "namespace", "name": "n", "tools": [FLAT], "zz": 1}]}),
    (
        "/v1/responses",
        "tools[0].tools[0].zz",
        {"tools": [{"type": "namespace", "name": "n", "tools": [{**FLAT, "zz": 1}]}]},
    ),
    ("/v1/messages", "thinking.zz", {"thinking": {"type": "enabled", "zz": 1}}),
    ("/v1/messages", "output_config.zz", {"output_config": {"zz": 1}}),
    ("/v1/messages", "tools[0].zz", {"tools": [{"name": "f", "input_schema": SCHEMA, "zz": 1}]}),
    ("/v1/messages", "messages[0].zz", {"messages": [{**user("x"), "zz": 1}]}),
    (
        "/v1/messages",
        "tool_choice.zz",
        {"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "auto", "zz": 1}},
    ),
]
# What asks for a grammar is refused here before the fake engine is asked for one, and cannot be served by it.
ENFORCED: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (path, "response_format.json_schema.zz", {"response_format": form})
        for path in ("/v1/completions", "/v1/chat/completions")
        for form in ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "zz": 1}},)
    ),
    ("/v1/chat/completions", "tool_choice.zz", chosen({"type": "function", "function": {"name": "f"}, "zz": 1})),
    (
        "/v1/chat/completions",
        "tool_choice.function.zz",
        chosen({"type": "function", "function": {"name": "f", "zz": 1}}),
    ),
    ("/v1/chat/completions", "tool_choice.custom.zz", chosen({"type": "custom", "custom": {"name": "c", "zz": 1}})),
    (
        "/v1/chat/completions",
        "tool_choice.allowed_tools.zz",
        chosen({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [FUNCTION], "zz": 1}}),
    ),
    (
        "/v1/chat/completions",
        "tool_choice.allowed_tools.tools[0].zz",
        chosen(
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}, "zz": 1}]},
            }
        ),
    ),
    ("/v1/responses", "tool_choice.zz", chosen({"type": "function", "name": "f", "zz": 1}, tools=[FLAT])),
    (
        "/v1/responses",
        "tool_choice.tools[0].zz",
        chosen(
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f", "zz": 1}]},
            tools=[FLAT],
        ),
    ),
    (
        "/v1/responses",
        "text.format.zz",
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "zz": 1}}},
    ),
    (
        "/v1/messages",
        "output_config.format.zz",
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA, "zz": 1}}},
    ),
    ("/v1/messages", "output_format.zz", {"output_format": {"type": "json_schema", "schema": SCHEMA, "zz": 1}}),
]


async def take_all(grammar: Any, param: str) -> None:
    """Check no grammar: what can be compiled is no matter of these tests."""


@pytest.fixture
async def strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    async with serving(tmp_path, FakeExecutor(says("Hello")), template=TEMPLATE, info=ROOM) as running:
        monkeypatch.setattr(running.engine, "check_grammar", take_all)
        yield running


@pytest.fixture
async def lenient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    async with serving(tmp_path, FakeExecutor(says("Hello")), template=TEMPLATE, info=ROOM, lenient=True) as running:
        monkeypatch.setattr(running.engine, "check_grammar", take_all)
        yield running


async def test_a_strict_server_names_the_path_in_a_400(strict: Serving) -> None:
    for path, place, more in NESTED + ENFORCED:
        response = await strict.post(path, **{**BODIES[path], **more})
        assert response.status_code == 400, (place, response.text)
        error = response.json()["error"]
        assert error["message"] == f"unknown parameter '{place}'"
        assert error.get("param") == (None if path == "/v1/messages" else place)


async def test_a_lenient_server_names_the_path_in_the_header(lenient: Serving) -> None:
    for path, place, more in NESTED + ENFORCED:
        response = await lenient.post(path, **{**BODIES[path], **more})
        assert response.status_code == 200, (place, response.text)
        assert response.headers[HEADER] == place


async def test_null_equals_absent_in_every_object(strict: Serving) -> None:
    for path, place, more in NESTED + ENFORCED:
        response = await strict.post(path, **{**BODIES[path], **_with_null(more)})
        assert response.status_code == 200, (place, response.text)
        assert HEADER not in response.headers


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: None if key == "zz" else _with_null(part) for key, part in value.items()}
    return [_with_null(part) for part in value] if isinstance(value, list) else value


def test_every_model_within_a_body_is_tried() -> None:
    def places(model: type[Body], where: str = "") -> set[str]:
        found: set[str] = set()
        for name, field in model.model_fields.items():
            part = _part_model(field)
            if part is not None:
                assert issubclass(part, Body)
                found |= {f"{where}{name}.zz", *places(part, f"{where}{name}.")}
        return found

    tried = {place for _, place, _ in NESTED + ENFORCED}
    for body in OPERATIONS.bodies:
        assert places(body) <= tried, body


async def test_the_template_is_given_a_chats_tool_whole(strict: Serving) -> None:
    plain = await strict.post("/tokenize", **BODIES["/tokenize"], **chat_tool({}))
    for tool in (chat_tool({"zz": 1}), chat_tool({}, zz=1), chat_tool({"return": {"type": "string"}})):
        shown = await strict.post("/tokenize", **BODIES["/tokenize"], **tool)
        assert shown.json()["count"] > plain.json()["count"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_what_other_apis_say_of_tools_is_taken_where_it_is_so_anyway(strict: Serving, path: str) -> None:
    def tools(**more: Any) -> dict[str, Any]:
        if path == "/v1/messages":
            return {"tools": [{"name": "f", "input_schema": SCHEMA, **more}]}
        return {"tools": [{**FLAT, **more}]} if path == "/v1/responses" else chat_tool(more)

    fine = {"allowed_callers": ["direct"], "defer_loading": False, "cache_control": {"type": "ephemeral"}}
    assert (await strict.post(path, **BODIES[path], **tools(**fine))).status_code == 200
    either = {"allowed_callers": ["direct", "code_execution_20250825"]}
    assert (await strict.post(path, **BODIES[path], **tools(**either))).status_code == 200
    response = await strict.post(path, **BODIES[path], **tools(allowed_callers=["code_execution_20250825"]))
    assert response.status_code == 400
    assert 'allowed_callers must have "direct"' in response.json()["error"]["message"].replace("\\", "")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_a_tool_whose_loading_is_deferred_is_shown_at_once(strict: Serving, path: str) -> None:
    deferred = {"defer_loading": True}
    tools, place = {
        "/v1/messages": ({"tools": [{"name": "f", "input_schema": SCHEMA, **deferred}]}, "tools[0]"),
        "/v1/responses": ({"tools": [{**FLAT, **deferred}]}, "tools[0]"),
        "/v1/chat/completions": (chat_tool(deferred), "tools[0].function"),
    }[path]
    response = await strict.post(path, **BODIES[path], **tools)
    assert response.status_code == 200, response.text
    assert response.headers["x-orcinus-left-out"] == f"{place}.defer_loading"
    counts = [await strict.post("/tokenize", **BODIES["/tokenize"], **chat_tool(more)) for more in (deferred, {})]
    assert counts[0].json()["count"] == counts[1].json()["count"]


async def test_options_of_other_servers_are_taken_where_they_are_off(strict: Serving) -> None:
    off = {"json_object": True, "disable_any_whitespace": False, "whitespace_pattern": None, "structural_tag": ""}
    assert (await strict.post("/v1/completions", prompt="x", structured_outputs=off)).status_code == 200
