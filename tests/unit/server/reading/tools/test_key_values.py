"""Gemma's way of writing calls: how values are read, and how far a grammar holds them to a schema."""

from typing import Any

import pytest

from orcinus.server.reading.tools.formats import FORMATS
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.unwritten import unwritten_keywords
from tests.unit.server.reading.tools.calling import call, content, function, read, tool_use
from tests.unit.server.reading.tools.family_templates import FUNCTIONGEMMA, GEMMA_4
from tests.unit.server.reading.tools.test_grammars import accepts

USE = tool_use([function("f", {"properties": {"s": {"type": "string"}, "n": {"type": "integer"}}})])


def gemma(arguments: str) -> str:
    return f"<|tool_call>call:f{{{arguments}}}<tool_call|>"


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("", "{}"),
        ('s:<|"|>a<|"|>,n:3', '{"s": "a", "n": 3}'),
        (' s : <|"|>a<|"|> ,\n n : 3 ', '{"s": "a", "n": 3}'),
        ("s:12", '{"s": "12"}'),
        ("s:Paris", '{"s": "Paris"}'),
        ("n:three", '{"n": "three"}'),
        ("x:10:30,y:a<b", '{"x": "10:30", "y": "a<b"}'),
        ("x:True,y:None,z:-1.5e3", '{"x": true, "y": null, "z": -1.5e3}'),
        ('<|"|>s<|"|>:<|"|>a<|"|>', '{"s": "a"}'),
        ('x:{a:[1,{b:<|"|>}]<|"|>}],c:{}},y:[]', '{"x": {"a": [1, {"b": "}]"}], "c": {}}, "y": []}'),
        ("x:,n:1", '{"x": "", "n": 1}'),
        ("x,n:1", '{"n": 1}'),
        ("n:1,", '{"n": 1}'),
        ('s:<|"|>a "b"\n<tool_call|> <|x|>é<|"|>', '{"s": "a \\"b\\"\\n<tool_call|> <|x|>é"}'),
    ],
)
def test_values_are_made_json(written: str, arguments: str) -> None:
    assert read(GEMMA_4, gemma(written), use=USE) == call(0, "f", arguments)
    other = f"<start_function_call>call:f{{{written}}}<end_function_call>".replace('<|"|>', "<escape>")
    assert read(FUNCTIONGEMMA, other, use=USE) == call(0, "f", arguments)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<|tool_call>call:f{n:1<tool_call|>", '{"n": 1}'),
        ("<|tool_call>call:f{x:[1,{y:2<tool_call|>", '{"x": [1, {"y": 2}]}'),
        ("<|tool_call>call:f{n:1}}<tool_call|>", '{"n": 1}'),
        ("<|tool_call>f{n:1}<tool_call|>", '{"n": 1}'),
        ('<|tool_call>call:f{s:<|"|>ab', '{"s": "ab"}'),
    ],
)
def test_brackets_that_the_model_forgot_are_closed(text: str, arguments: str) -> None:
    assert read(GEMMA_4, text, use=USE) == call(0, "f", arguments)


@pytest.mark.parametrize("text", ["a <|tool_call>", "a <|tool_call> is", "a <|tool_call>call:", "a <|tool_call>call:f"])
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert read(GEMMA_4, text, use=USE) == content(text)


NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "at": {"$ref": "#/$defs/Place"},
        "tags": {"type": "array", "items": {"enum": ["a b", "c"]}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "size": {"type": ["integer", "boolean"], "description": "any"},
        "odd key:": {"const": {"k": [1, "v"]}},
        "any": {},
        "list": {"type": "array"},
    },
    "required": ["at"],
    "$defs": {
        "Place": {
            "type": "object",
            "properties": {"x": {"type": "number", "minimum": 0}, "name": {"type": "string"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}


def use_of(schema: dict[str, Any], **options: Any) -> ToolUse:
    return tool_use([function("f", schema, **options)], "required")


@pytest.mark.parametrize(
    ("written", "is_allowed"),
    [
        ("at:{x:1.5}", True),
        ('at:{x:1,name:<|"|>Rome "{<|"|>}', True),
        ("at:{}", False),
        ("at:{x:-1}", False),
        ('at:{x:<|"|>1<|"|>}', False),
        ("at:{x:1,z:2}", False),
        ("", False),
        ('at:{x:1},tags:[<|"|>a b<|"|>,<|"|>c<|"|>]', True),
        ("at:{x:1},tags:[]", True),
        ('at:{x:1},tags:[<|"|>d<|"|>]', False),
        ('at:{x:1},note:<|"|>n<|"|>', True),
        ("at:{x:1},note:null", True),
        ("at:{x:1},note:3", False),
        ("at:{x:1},size:3", True),
        ("at:{x:1},size:true", True),
        ('at:{x:1},size:<|"|>3<|"|>', False),
        ('at:{x:1},<|"|>odd key:<|"|>:{k:[1,<|"|>v<|"|>]}', True),
        ('at:{x:1},any:[{a:<|"|>b<|"|>,c:null}],list:[1,true]', True),
        ("at:{x:1},list:{}", False),
        ("tags:[],at:{x:1}", False),
    ],
)
def test_a_grammar_holds_a_call_to_its_schema(written: str, is_allowed: bool) -> None:
    assert accepts(GEMMA_4, gemma(written), use_of(NESTED)) == is_allowed


def test_what_a_schema_says_that_cannot_be_enforced_is_told() -> None:
    assert unwritten_keywords(FORMATS["gemma4"], use_of(NESTED).tools[0]) == []
    schema = {
        "type": "object",
        "minProperties": 1,
        "properties": {
            "s": {"type": "string", "pattern": "a"},
            "l": {"type": "array", "minItems": 1, "items": {"type": "string", "maxLength": 3}},
            "o": {"allOf": [{}]},
            "n": {"type": "integer", "minimum": 1},
        },
    }
    found = {(item.place, item.keyword) for item in unwritten_keywords(FORMATS["gemma4"], use_of(schema).tools[0])}
    assert found == {
        ((), "minProperties"),
        (("properties", "s"), "pattern"),
        (("properties", "l"), "minItems"),
        (("properties", "l", "items"), "maxLength"),
        (("properties", "o"), "allOf"),
    }


def test_a_schema_may_refer_to_itself() -> None:
    children = {name: {"$ref": "#/$defs/Node"} for name in "abcdef"}
    node = {"type": "object", "properties": {**children, "v": {"type": "integer"}}}
    tree = {"properties": {"root": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}}
    assert unwritten_keywords(FORMATS["gemma4"], use_of(tree).tools[0]) == []
    assert accepts(GEMMA_4, gemma("root:{a:{b:{c:{d:{e:{f:{a:{b:{c:{d:{v:3}}}}}}}}}}}"), use_of(tree))
    assert not accepts(GEMMA_4, gemma("root:{a:{b:{c:{d:{e:{f:{a:{b:{c:{d:{v:true}}}}}}}}}}}"), use_of(tree))
