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
