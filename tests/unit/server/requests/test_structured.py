"""From `response_format` and `structured_outputs` to grammars; what cannot be one is refused by name."""

import json
from typing import Any

import pytest

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import MAX_GRAMMAR_CHARS, Grammar
from orcinus.server.apis.chat.body import parse_chat
from orcinus.server.requests.schemas import MAX_CHOICE_STRINGS
from orcinus.server.requests.structured import read_grammar
from tests.unit.server.serving import user

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}


def grammar_of(**body: Any) -> Grammar | None:
    return read_grammar(parse_chat({"messages": [user("x")], **body}))


def test_without_a_form_there_is_no_grammar() -> None:
    assert grammar_of() is None
    assert grammar_of(response_format={"type": "text"}) is None
    assert grammar_of(response_format=None, structured_outputs=None) is None


def test_response_format_becomes_a_grammar() -> None:
    assert grammar_of(response_format={"type": "json_object"}) == Grammar("json_object")
    described = {"name": "size", "strict": True, "schema": SCHEMA}
    grammar = grammar_of(response_format={"type": "json_schema", "json_schema": described})
    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.source)) == ("json_schema", SCHEMA)


def test_an_object_may_have_a_schema() -> None:
    grammar = grammar_of(response_format={"type": "json_object", "schema": SCHEMA})
    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.source)) == ("json_schema", SCHEMA)
    assert grammar_of(response_format={"type": "json_object", "schema": None}) == Grammar("json_object")


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"regex": "a+"}, Grammar("regex", "a+")),
        ({"choice": ["yes", "nö"]}, Grammar("choice", '["yes", "nö"]')),
        ({"grammar": 'root ::= "a"'}, Grammar("grammar", 'root ::= "a"')),
        ({"json": {"type": "object"}}, Grammar("json_schema", '{"type": "object"}')),
        ({"json": '{"type":"object"}', "regex": None}, Grammar("json_schema", '{"type": "object"}')),
        ({"json_object": True}, Grammar("json_object")),
    ],
)
def test_structured_outputs_become_grammars(asked: dict[str, Any], wanted: Grammar) -> None:
    assert grammar_of(structured_outputs=asked) == wanted


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", '"xml"'),
        ({"response_format": {}}, "response_format.type", "null"),
        ({"response_format": {"type": "json_object", "schema": 1}}, "response_format.schema", "must be a JSON schema"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema", "json_object"),
        *(
            (
                {"response_format": {"type": kind, "json_schema": {"schema": {}}}},
                "response_format.json_schema",
                f'needs the type "json_schema", got "{kind}"',
            )
            for kind in ("text", "json_object")
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "is required",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": [1]}}},
            "response_format.json_schema.schema",
            "must be a JSON schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "got 2"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag", "unknown parameter"),
        ({"structured_outputs": {"regex": "a", "regx": ""}}, "structured_outputs.regx", "unknown parameter"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "not empty"),
        ({"structured_outputs": {"grammar": 5}}, "structured_outputs.grammar", "must be a string"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice", "not empty"),
        (
            {"structured_outputs": {"choice": ["a"] * (MAX_CHOICE_STRINGS + 1)}},
            "structured_outputs.choice",
            f"at most {MAX_CHOICE_STRINGS} strings, got {MAX_CHOICE_STRINGS + 1}",
        ),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "not valid JSON"),
        ({"structured_outputs": {"json": '{"const": NaN}'}}, "structured_outputs.json", "not valid JSON"),
        (
            {"structured_outputs": {"json": "[" * (MAX_GRAMMAR_CHARS + 1)}},
            "structured_outputs.json",
            f"at most {MAX_GRAMMAR_CHARS} characters, got {MAX_GRAMMAR_CHARS + 1}",
        ),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object", "must be true"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "give one",
        ),
    ],
)
def test_what_is_no_form_is_refused_by_name(body: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        grammar_of(**body)
    assert caught.value.param == param
