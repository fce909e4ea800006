"""Schemas that need not be enforced, and an object with a schema: what is served, and what is refused by name."""

import json
from typing import Any

import jsonschema
import pytest

from tests.server_process import ServerProcess

HI = [{"role": "user", "content": "Hi"}]
MEANT: dict[str, Any] = {
    "propertyNames": {"pattern": "^a"},
    "not": {"required": ["z"]},
    "dependentRequired": {"a": ["b"]},
}
NESTED: dict[str, Any] = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 1}},
    "pattern": {"type": "string", "pattern": "^(?=a)ab$"},
    "oneOf": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    "type": {"type": "text"},
    "patternProperties": {"type": "object", "patternProperties": {"^x": {"type": "integer"}, "y$": {"type": "string"}}},
}
SCHEMAS: list[dict[str, Any]] = [
    *({"type": "object", "properties": {"a": {"type": "string"}}, name: value} for name, value in MEANT.items()),
    *({"type": "object", "properties": {name: value}} for name, value in NESTED.items()),
    {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    {"type": "object", "allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": {"type": "string"}},
]


def ask(server: ServerProcess, **body: Any) -> Any:
    asked = {"messages": HI, "max_tokens": 60, "temperature": 0, **body}
    return server.http.post("/v1/chat/completions", json=asked)


def form(schema: Any, **described: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **described}}


def test_a_schema_that_is_not_strict_is_never_refused_for_a_keyword(server: ServerProcess) -> None:
    for schema in SCHEMAS:
        response = ask(server, response_format=form(schema, strict=False))
        assert response.status_code == 200, (schema, response.text)
        assert isinstance(json.loads(response.json()["choices"][0]["message"]["content"]), dict)


def test_of_a_schema_that_is_not_strict_what_can_be_is_enforced(server: ServerProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["only this"]}},
        "required": ["a"],
        "additionalProperties": False,
        "dependentRequired": {"a": ["a"]},
    }
    response = ask(server, response_format=form(schema, strict=False))
    assert json.loads(response.json()["choices"][0]["message"]["content"]) == {"a": "only this"}


@pytest.mark.parametrize("described", [{}, {"strict": True}, {"strict": None}])
def test_one_that_does_not_say_so_is_enforced_or_refused(server: ServerProcess, described: dict[str, Any]) -> None:
    for schema in SCHEMAS:
        response = ask(server, response_format=form(schema, **described))
        assert response.status_code == 400, (schema, response.text)


def test_strict_false_means_the_same_on_responses(server: ServerProcess) -> None:
    for is_strict, status in ((False, 200), (True, 400), (None, 400)):
        text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMAS[0], "strict": is_strict}}
        response = server.http.post("/v1/responses", json={"input": "Hi", "max_output_tokens": 60, "text": text})
        assert response.status_code == status, response.text


def test_a_tool_that_is_not_strict_is_never_refused_for_a_keyword(server: ServerProcess) -> None:
    for schema in SCHEMAS:
        for strict in ({}, {"strict": False}):
            tools = [{"type": "function", "function": {"name": "f", "parameters": schema, **strict}}]
            response = ask(server, tools=tools, tool_choice="required")
            assert response.status_code == 200, (schema, response.text)
            [call, *_] = response.json()["choices"][0]["message"]["tool_calls"]
            assert call["function"]["name"] == "f"


def test_a_tool_that_is_strict_is_refused_for_what_cannot_be_enforced(server: ServerProcess) -> None:
    loose = {"type": "function", "function": {"name": "g", "parameters": SCHEMAS[1]}}
    strict = {"type": "function", "function": {"name": "f", "parameters": SCHEMAS[0], "strict": True}}
    response = ask(server, tools=[loose, strict], tool_choice="required")
    assert response.status_code == 400
    assert "propertyNames" in response.json()["error"]["message"]


PARTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"enum": ["only this"]},
        "é b": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2},
    },
    "required": ["a", "é b"],
    "additionalProperties": False,
    "dependentRequired": {"a": ["é b"]},
}
TOOL = {"name": "f", "description": "Do it."}


def forms(schema: Any, strict: bool) -> list[tuple[str, dict[str, Any], str]]:
    """Return requests that have to match a schema, on every endpoint, with the place of the schema in each."""
    chat, responses, messages = "/v1/chat/completions", "/v1/responses", "/v1/messages"
    described = {"name": "x", "schema": schema, "strict": strict}
    function = {**TOOL, "parameters": schema, "strict": strict}
    length = {"max_tokens": 80, "temperature": 0}
    asked = {"messages": HI, "model": "orcinus-demo", **length}
    answer = {"input": "Hi", "max_output_tokens": 80, "temperature": 0}
    form = {"response_format": {"type": "json_schema", "json_schema": described}}
    place = "response_format.json_schema.schema"
    required = {"tool_choice": "required", "parallel_tool_calls": False}
    both = {"tools": [{"type": "function", "function": TOOL}], **form}
    return [
        ("/v1/completions", {"prompt": "Hi", **length, **form}, place),
        (chat, {**asked, **form}, place),
        (chat, {**asked, **both}, place),
        (responses, {**answer, "text": {"format": {"type": "json_schema", **described}}}, "text.format.schema"),
        (
            chat,
            {**asked, **required, "tools": [{"type": "function", "function": function}]},
            "tools[0].function.parameters",
        ),
        (responses, {**answer, **required, "tools": [{"type": "function", **function}]}, "tools[0].parameters"),
        (
            messages,
            {
                **asked,
                "tools": [{**TOOL, "input_schema": schema, "strict": strict}],
                "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            },
            "tools[0].input_schema",
        ),
    ]


def test_only_the_keywords_that_cannot_be_enforced_are_left_out_and_named(server: ServerProcess) -> None:
    for path, body, place in forms(PARTS, strict=False):
        response = server.http.post(path, json=body)
        assert response.status_code == 200, (path, response.text)
        left_out = f"{place}.dependentRequired, {place}.properties.%C3%A9%20b.uniqueItems"
        assert response.headers["x-orcinus-left-out"] == left_out
        if "tools" not in body or "response_format" not in body:  # there the model may call the tool instead
            assert "only this" in response.text


def test_what_is_strict_is_refused_by_the_clients_own_names(server: ServerProcess) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^(?=a)b"}, "y": {}}}
    for path, body, place in forms(schema, strict=True):
        for is_streamed in (False, True):
            response = server.http.post(path, json={**body, "stream": is_streamed})
            assert response.status_code == 400, (path, response.text)
            error = response.json()["error"]
            assert error["message"].startswith(
                f'{place}.properties.x: keyword "pattern" cannot be enforced: look-around'
            )
            assert error.get("param") == (None if path == "/v1/messages" else f"{place}.properties.x")


def test_a_strict_tool_is_enforced_or_refused_where_the_model_may_call_too(server: ServerProcess) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^(?=a)b"}, "y": {}}}
    for path, body, place in forms(schema, strict=True)[-3:]:
        del body["tool_choice"]
        response = server.http.post(path, json=body)
        assert response.status_code == 400, (path, response.text)
        assert response.json()["error"]["message"].startswith(f'{place}.properties.x: keyword "pattern"')


CALL_TOKEN = "2044"  # the demo model's <tool_call>


def calls_of(path: str, answer: dict[str, Any]) -> list[Any]:
    """Return the arguments of the calls in an answer of any endpoint."""
    if path == "/v1/chat/completions":
        calls = answer["choices"][0]["message"].get("tool_calls") or []
        return [json.loads(call["function"]["arguments"]) for call in calls]
    if path == "/v1/responses":
        return [json.loads(item["arguments"]) for item in answer["output"] if item["type"] == "function_call"]
    return [block["input"] for block in answer["content"] if block["type"] == "tool_use"]


def test_calls_that_the_model_chooses_to_make_match_a_strict_schema_on_every_endpoint(server: ServerProcess) -> None:
    schema = {name: value for name, value in PARTS.items() if name != "dependentRequired"}
    schema["properties"] = {**PARTS["properties"], "é b": {"type": "array", "items": {"type": "integer"}}}
    for path, body, _ in forms(schema, strict=True)[-3:]:
        asked = {**body, "temperature": 1.5, "seed": 1, "logit_bias": {CALL_TOKEN: 100}}
        del asked["tool_choice"]
        response = server.http.post(path, json=asked)
        assert response.status_code == 200, (path, response.text)
        calls = calls_of(path, response.json())
        assert calls, (path, response.text)
        for arguments in calls:
            jsonschema.validate(arguments, schema)


@pytest.mark.parametrize(("strict", "is_held"), [({}, True), ({"strict": None}, True), ({"strict": False}, False)])
def test_a_tool_of_responses_that_says_nothing_is_held_to_its_schema_as_far_as_that_can_be(
    server: ServerProcess, strict: dict[str, Any], is_held: bool
) -> None:
    asked = {"input": "Hi", "max_output_tokens": 80, "temperature": 1.5, "logit_bias": {CALL_TOKEN: 100}}
    tool = {"type": "function", **TOOL, "parameters": PARTS, **strict}
    response = server.http.post("/v1/responses", json={**asked, "tools": [tool]})
    assert response.status_code == 200, response.text
    assert ("x-orcinus-left-out" in response.headers) == is_held
    calls = calls_of("/v1/responses", response.json())
    assert calls or not is_held
    for arguments in calls if is_held else []:
        assert arguments["a"] == "only this"


def test_schemas_without_a_word_of_strictness_are_refused_by_the_same_names(server: ServerProcess) -> None:
    schema = {"type": "object", "properties": {"x": {"not": {"type": "null"}}}}
    form = {"format": {"type": "json_schema", "schema": schema}}
    asked = {"messages": HI, "model": "orcinus-demo", "max_tokens": 5}
    for path, body, place in (
        ("/v1/messages", {**asked, "output_config": form}, "output_config.format.schema"),
        ("/v1/messages", {**asked, "output_format": form["format"]}, "output_format.schema"),
        ("/v1/messages", {**asked, "structured_outputs": {"json": schema}}, "structured_outputs.json"),
        ("/v1/completions", {"prompt": "Hi", "structured_outputs": {"json": schema}}, "structured_outputs.json"),
        ("/v1/chat/completions", {**asked, "response_format": {"type": "json_object", "schema": schema}}, ""),
    ):
        response = server.http.post(path, json=body)
        assert response.status_code == 400
        where = place or "response_format.schema"
        assert response.json()["error"]["message"] == f'{where}.properties.x: keyword "not" cannot be enforced'


def test_of_several_tools_the_one_at_fault_is_named(server: ServerProcess) -> None:
    fine = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
    loose = {"type": "function", "function": {"name": "g", "parameters": SCHEMAS[0]}}
    wrong = {"type": "function", "function": {"name": "h", "parameters": SCHEMAS[2], "strict": True}}
    response = ask(server, tools=[fine, loose, wrong], tool_choice="required")
    assert response.status_code == 400
    told = 'tools[2].function.parameters: keyword "dependentRequired" cannot be enforced'
    assert response.json()["error"]["message"] == told
    named = {"type": "function", "function": {"name": "f"}}
    response = ask(server, tools=[fine, loose, wrong], tool_choice=named)  # the others are not called
    assert response.status_code == 200
    assert "x-orcinus-left-out" not in response.headers


def test_an_object_with_a_schema_matches_it(server: ServerProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    response = ask(server, response_format={"type": "json_object", "schema": schema})
    jsonschema.validate(json.loads(response.json()["choices"][0]["message"]["content"]), schema)
    wrong = ask(server, response_format={"type": "json_object", "schema": {"uniqueItems": True}})
    assert wrong.status_code == 400
    assert "uniqueItems" in wrong.json()["error"]["message"]
