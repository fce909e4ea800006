"""Keywords of a schema that say nothing, of drafts 7 and 2020-12: they are annotations; the others are not dropped."""

import copy
import json
from typing import Any

import pytest

from orcinus.engine.grammar.gate import Trial
from orcinus.engine.grammar.neutral_keywords import drop_neutral_keywords
from orcinus.engine.grammar.trial_process import find_fault
from tests.unit.engine.grammar.grammars import demo_compiler

ANY_TEXT: dict[str, Any] = {"type": "string"}
NEUTRAL: list[dict[str, Any]] = [
    *({"propertyNames": names} for names in (True, {}, ANY_TEXT, {"type": ["string", "null"]}, {"title": "key"})),
    {"propertyNames": {"type": "string", "minLength": 0, "description": "any"}},
    {"uniqueItems": False},
    {"maxItems": 1, "uniqueItems": True},
    *({"format": name} for name in ("colour", "int32", "password", "regex", "iri", "json-pointer", "binary")),
    {"not": False},
    *({"if": {"minLength": 1}, "then": taken} for taken in (True, {}, {"title": "then"})),
    {"if": {"minLength": 1}, "else": {}},
    {"if": {"minLength": 1}},
    {"if": True, "then": True},
    {"then": {"minLength": 1}},
    {"else": {"minLength": 1}},
    {"minContains": 1},
    {"maxContains": 1},
    {"contains": ANY_TEXT, "minContains": 0},
    *({name: {}} for name in ("dependentRequired", "dependentSchemas", "dependencies")),
    {"dependentRequired": {"a": []}},
    {"dependentSchemas": {"a": True, "b": {}}},
    {"dependencies": {"a": [], "b": {}}},
    *({name: True} for name in ("unevaluatedProperties", "unevaluatedItems")),
    *({name: {}} for name in ("unevaluatedProperties", "unevaluatedItems")),
    {"additionalProperties": False, "unevaluatedProperties": False},
    {"$dynamicAnchor": "x"},
    {"$recursiveAnchor": True},
    {"$schema": "https://example.org/my-dialect"},
    *({name: "x"} for name in ("title", "description", "$comment", "default", "contentMediaType", "x-ours", "unknown")),
    *({name: True} for name in ("deprecated", "readOnly", "writeOnly", "nullable")),
    {"examples": [1], "contentEncoding": "base64", "contentSchema": {"not": {}}},
    {"$vocabulary": {}, "$anchor": "here", "$id": "https://example.org/x"},
    {"patternProperties": {}, "minProperties": 0, "minLength": 0, "minItems": 0, "required": []},
]
PLACES: list[Any] = [
    lambda part: part,
    lambda part: {"type": "object", "properties": {"a": part}},
    lambda part: {"type": "array", "items": part},
    lambda part: {"anyOf": [part, {"type": "null"}]},
    lambda part: {"$defs": {"d": part}, "$ref": "#/$defs/d"},
    lambda part: {"elsewhere": {"of/ours": [part]}, "$ref": "#/elsewhere/of~1ours/0"},
]


def everywhere(part: Any) -> dict[str, Any]:
    """Return one schema with the part in all of these places."""
    whole: dict[str, Any] = {"anyOf": [], "$defs": {"d": part}, "elsewhere": {"of/ours": [part]}}
    for place in PLACES:
        schema = place(copy.deepcopy(part))
        whole["anyOf"].append({"$ref": schema["$ref"]} if "$ref" in schema else schema)
    return copy.deepcopy(whole)


def fault(schema: Any) -> str | None:
    return find_fault(demo_compiler(), Trial("json_schema", json.dumps(schema)))


@pytest.mark.parametrize("keywords", NEUTRAL, ids=json.dumps)
def test_a_keyword_that_says_nothing_refuses_no_schema_wherever_it_stands(keywords: dict[str, Any]) -> None:
    assert fault(copy.deepcopy(keywords)) is None
    assert fault(everywhere(keywords)) is None


MEANT: list[tuple[dict[str, Any], str]] = [
    ({"propertyNames": {"pattern": "^a"}}, "propertyNames"),
    ({"propertyNames": {"minLength": 1}}, "propertyNames"),
    ({"propertyNames": False}, "propertyNames"),
    ({"uniqueItems": True}, "uniqueItems"),
    ({"not": {"const": 1}}, "not"),
    ({"if": {"minLength": 1}, "then": {"maxLength": 2}}, "if"),
    ({"contains": {"const": 1}}, "contains"),
    ({"contains": {"const": 1}, "minContains": 0, "maxContains": 2}, "contains"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
    ({"dependencies": {"a": ["b"]}}, "dependencies"),
    ({"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}]}, "unevaluatedProperties"),
    ({"$dynamicAnchor": "x", "items": {"$dynamicRef": "#x"}}, "$dynamic"),
]


@pytest.mark.parametrize(("keywords", "name"), MEANT, ids=[json.dumps(keywords) for keywords, _ in MEANT])
def test_one_that_is_meant_is_refused_by_name_wherever_it_stands(keywords: dict[str, Any], name: str) -> None:
    for place in PLACES[:5]:
        assert name in (fault(place(copy.deepcopy(keywords))) or "")


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"contains": {}}, {"minItems": 1}),
        ({"contains": True, "minContains": 2, "maxContains": 3, "minItems": 1}, {"minItems": 2, "maxItems": 3}),
        ({"if": True, "then": {"minLength": 1}, "else": False}, {"allOf": [{"minLength": 1}]}),
        ({"if": False, "then": False, "else": {"minLength": 1}}, {"allOf": [{"minLength": 1}]}),
        (
            {"properties": {"a": {}}, "unevaluatedProperties": False},
            {"properties": {"a": {}}, "additionalProperties": False},
        ),
        ({"prefixItems": [{}], "unevaluatedItems": False}, {"prefixItems": [{}], "items": False}),
        ({"properties": {"format": {"format": "colour"}}}, {"properties": {"format": {}}}),
    ],
)
def test_what_can_be_said_in_simpler_words_is(given: dict[str, Any], left: dict[str, Any]) -> None:
    drop_neutral_keywords(given)
    assert given == left


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"uniqueItems": False, "format": "colour"}},
        {"enum": [{"not": False}]},
        {"default": {"propertyNames": {}}, "examples": [{"if": True}]},
        {"properties": {"uniqueItems": {"type": "boolean"}, "not": {"type": "string"}}, "required": ["not"]},
        {"format": "date-time", "minItems": 1, "additionalProperties": False},
    ],
)
def test_values_and_names_of_properties_are_no_keywords(schema: dict[str, Any]) -> None:
    before = copy.deepcopy(schema)
    drop_neutral_keywords(schema)
    assert schema == before


@pytest.mark.parametrize("required", [True, False])
def test_schemas_that_differ_in_their_title_alone_have_one_verdict(required: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"x_a": {"type": "string"}},
        "patternProperties": {"^x_": {"type": "integer"}},
        "required": ["x_a"] if required else [],
    }
    verdicts = {fault({**schema, "title": f"number {i}"}) for i in range(24)}
    assert len(verdicts) == 1
    assert all(verdict is None or "'x_a' is unsatisfiable" in verdict for verdict in verdicts)


def test_a_schema_within_a_grammar_is_read_alike() -> None:
    schema = json.dumps({"type": "object", "propertyNames": {"type": "string"}, "properties": {"a": {"format": "x"}}})
    assert find_fault(demo_compiler(), Trial("grammar", f'start: "a" %json {schema} "b"\n')) is None
