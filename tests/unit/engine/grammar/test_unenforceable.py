"""Which keywords of a schema are to blame where it cannot be enforced, and what is left without them."""

import json
from functools import cache
from typing import Any

import pytest

from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.gate import Trial, Verdict
from orcinus.engine.grammar.trial_process import judge
from orcinus.engine.grammar.unenforceable import find_unenforceable
from tests.unit.engine.grammar.grammars import demo_compiler

TEXT: dict[str, Any] = {"type": "string"}
UNIQUE: dict[str, Any] = {"type": "array", "uniqueItems": True}


@cache
def compiler() -> GrammarCompiler:
    return demo_compiler()


def judged(schema: Any) -> Verdict:
    return judge(compiler(), Trial("json_schema", json.dumps(schema)))


def blamed(schema: Any) -> list[str]:
    return [".".join(map(str, (*found.place, found.keyword))) for found in judged(schema).keywords]


def in_property(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}}


FAULTS: list[tuple[Any, list[str]]] = [
    ({"not": TEXT}, ["not"]),
    (in_property(UNIQUE), ["properties.x.uniqueItems"]),
    (in_property({"contains": TEXT, "minContains": 2}), ["properties.x.contains", "properties.x.minContains"]),
    (in_property({"pattern": "(?=a)b"}), ["properties.x.pattern"]),
    (in_property({"oneOf": [TEXT, {"type": "string", "minLength": 1}]}), ["properties.x.oneOf"]),
    (in_property({"type": "text"}), ["properties.x.type"]),
    (in_property({"items": [TEXT, {"not": TEXT}]}), ["properties.x.items.1.not"]),
    (in_property({"anyOf": [TEXT, UNIQUE]}), ["properties.x.anyOf.1.uniqueItems"]),
    (
        in_property({"oneOf": [{"type": "string", "pattern": "\\b"}, {"type": "null"}]}),
        ["properties.x.oneOf.0.pattern"],
    ),
    ({"patternProperties": {"^a": TEXT, "^ab": TEXT}}, ["patternProperties"]),
    ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, ["if", "then"]),
    ({"minLength": 5, "maxLength": 3, "type": "string"}, ["maxLength"]),
    ({"enum": []}, ["enum"]),
    ({"$ref": "https://example.org/x"}, ["$ref"]),
    ({"$ref": "#/$defs/a"}, ["$ref"]),
    ({"properties": {"a": 3}}, ["properties"]),
    ({**in_property(UNIQUE), "dependentRequired": {"a": ["b"]}}, ["dependentRequired", "properties.x.uniqueItems"]),
]


@pytest.mark.parametrize(("schema", "keywords"), FAULTS)
def test_the_keywords_to_blame_are_found_and_the_rest_can_be_enforced(schema: Any, keywords: list[str]) -> None:
    assert blamed(schema) == keywords
    assert judged(json.loads(judged(schema).rest)).fault is None


def test_what_is_left_is_all_the_rest_as_it_was() -> None:
    kept = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2, "title": "letters"}
    schema = {**in_property({**kept, "uniqueItems": True}), "required": ["x"], "additionalProperties": False}
    rest = {**in_property(kept), "required": ["x"], "additionalProperties": False}
    assert json.loads(judged(schema).rest) == rest


def test_what_a_keyword_without_meaning_here_holds_is_not_named_too() -> None:
    assert blamed({"contains": UNIQUE, **in_property({"not": TEXT})}) == ["contains", "properties.x.not"]


def test_definitions_count_where_something_refers_to_them() -> None:
    definitions = {"T": {"properties": {"next": {"$ref": "#/$defs/T"}, "u": UNIQUE}}, "Other": {"not": TEXT}}
    schema = {**in_property({"$ref": "#/$defs/T"}), "$defs": definitions}
    assert blamed(schema) == ["$defs.T.properties.u.uniqueItems"]


def test_an_alternative_that_nothing_matches_is_no_fault() -> None:
    assert blamed({"anyOf": [{"enum": []}, UNIQUE, TEXT]}) == ["anyOf.1.uniqueItems"]


def test_the_reason_is_told_where_the_keyword_alone_does_not_tell_it() -> None:
    def reason(schema: Any) -> str:
        [found] = judged(schema).keywords
        return found.reason

    assert reason({"not": TEXT}) == ""
    assert "look-ahead" in reason({"type": "string", "pattern": "(?=a)"})
    assert reason({"type": "string", "minLength": 5, "maxLength": 3}) == "minLength (5) is greater than maxLength (3)"
    assert reason({"type": "string", "format": "date-time", "pattern": "a"}) == "no text matches it"
    assert reason({"allOf": [{"$ref": "#/$defs/a"}]}) == "Pointer '/$defs/a' does not exist"


@pytest.mark.parametrize("schema", [False, [], {"not": {"not": {}}, "x-guidance": {}}])
def test_what_is_no_schema_has_a_fault_and_no_keywords(schema: Any) -> None:
    verdict = judged(schema)
    assert verdict.fault is not None
    assert not verdict.keywords


def test_other_grammars_are_judged_as_a_whole() -> None:
    assert not judge(compiler(), Trial("regex", "(")).keywords


def test_the_search_is_bounded() -> None:
    asked = []

    def fault_of(schema: Any) -> str:
        asked.append(schema)
        return "wrong"

    schema = in_property({"properties": {str(number): {"enum": [1]} for number in range(50)}})
    assert find_unenforceable(schema, fault_of, max_trials=20)[0] == []
    assert len(asked) == 20
    assert schema == in_property({"properties": {str(number): {"enum": [1]} for number in range(50)}})
