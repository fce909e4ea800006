"""The grammars that make a model call a tool, tried with llguidance and the demo model's tokens."""

import json
from functools import cache
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from orcinus.config.settings import demo_model_path
from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import MAX_GRAMMAR_CHARS
from orcinus.server.reading.harmony import MARKERS
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.message_reader import join_pieces
from orcinus.server.reading.pieces import Piece
from orcinus.server.reading.tools.request import MAX_TOOLS_CHARS, ToolUse
from tests.unit.server.reading.tools import family_templates, templates
from tests.unit.server.reading.tools.calling import call, function, read_all, tool_use

PLACE = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"], "x-guidance": {"lenient": True}}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"days": {"type": "integer"}, "city": {"type": "string"}, "at": {"$ref": "#/$defs/Place"}},
    "required": ["city"],
    "$defs": {"Place": PLACE},
    "x-guidance": {"whitespace_flexible": True},
}
UNIT = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "additionalProperties": False}
TOOLS = [function("get_weather", WEATHER), function("get_time"), function("set_unit", UNIT, strict=True)]
NAMED = {"type": "function", "function": {"name": "get_time"}}


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))


@cache
def matching_tokenizer() -> LLTokenizer:
    return LLTokenizer(tokenizer().to_str())


def detect(template: str) -> MessageFormat:
    return MessageFormat.detect(template, tokenizer().token_to_id)


def accepts(template: str, text: str, use: ToolUse) -> bool:
    grammar = detect(template).grammar("", use)
    assert grammar is not None
    assert grammar.kind == "grammar"
    matcher = LLMatcher(matching_tokenizer(), LLMatcher.grammar_from_lark(grammar.source))
    assert not matcher.is_error(), matcher.get_error()
    token_ids = tokenizer().encode(text, add_special_tokens=False).ids
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def hermes(*calls: tuple[str, str]) -> str:
    return "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>' for name, text in calls)


def llama(*calls: tuple[str, str]) -> str:
    return "; ".join(f'{{"name": "{name}", "parameters": {text}}}' for name, text in calls)


def mistral_v3(*calls: tuple[str, str]) -> str:
    objects = [f'{{"name": "{name}", "arguments": {text}}}' for name, text in calls]
    return f"[TOOL_CALLS] [{', '.join(objects)}]"


def mistral_v11(*calls: tuple[str, str]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[CALL_ID]a1B2c3D4e[ARGS]{text}" for name, text in calls)


def mistral_v13(*calls: tuple[str, str]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{text}" for name, text in calls)


def pythonic(*calls: tuple[str, str]) -> str:
    written = []
    for name, text in calls:
        arguments = [f"{key}={json.dumps(value)}" for key, value in json.loads(text).items()]
        written.append(f"{name}({', '.join(arguments)})")
    return f"[{', '.join(written)}]"


def harmony(*calls: tuple[str, str]) -> str:
    return "".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{text}" for name, text in calls
    )


FORMATS = [
    (templates.QWEN_2_5, hermes),
    (templates.LLAMA_3_1, llama),
    (templates.MISTRAL_V3, mistral_v3),
    (templates.MISTRAL_V11, mistral_v11),
    (templates.MISTRAL_V13, mistral_v13),
    (templates.LLAMA_4_PYTHONIC, pythonic),
]
every_format = pytest.mark.parametrize(("template", "write"), FORMATS, ids=[write.__name__ for _, write in FORMATS])

CITY = ("get_weather", '{"city": "Z {\\"}]"}')
PLACED = ("get_weather", '{"city": "Rome", "at": {"x": 1.5}}')
TIME = ("get_time", "{}")
SET = ("set_unit", '{"unit": "C"}')


@every_format
@pytest.mark.parametrize("calls", [(CITY,), (PLACED,), (TIME,), (SET,), (TIME, CITY, TIME), (TIME,) * 16])
def test_good_calls_are_allowed_and_read(template: str, write: Any, calls: tuple[tuple[str, str], ...]) -> None:
    use = tool_use(TOOLS, "required")
    text = write(*calls)
    assert accepts(template, text, use)
    written: list[Piece] = [piece for i, (name, arguments) in enumerate(calls) for piece in call(i, name, arguments)]
    assert join_pieces(read_all(detect(template), [text], use=use)) == written


def test_harmonys_models_make_one_call_after_their_analysis() -> None:
    use = tool_use(TOOLS, "required")
    for name, arguments in (CITY, PLACED, TIME, SET):
        text = harmony((name, arguments))
        assert accepts(family_templates.GPT_OSS, text, use)
        assert read_all(detect(family_templates.GPT_OSS), [text], use=use) == call(0, name, arguments)
    assert not accepts(family_templates.GPT_OSS, harmony(("get_weather", '{"days": 3}')), use)
    assert not accepts(family_templates.GPT_OSS, harmony(TIME, TIME), use)
    assert not accepts(family_templates.GPT_OSS, "<|channel|>final<|message|>Hello.", use)


def test_harmonys_analysis_may_come_first_where_its_markers_are_tokens() -> None:
    use = tool_use(TOOLS, "required")
    tokens = {marker: number for number, marker in enumerate(MARKERS, 2040)}
    with_tokens = MessageFormat.detect(family_templates.GPT_OSS, tokens.get).grammar("<|start|>assistant", use)
    assert with_tokens is not None
    assert with_tokens.source.startswith(
        'start: (<[2041]> "analysis" <[2043]> /(.|\\n)*/ <[2044]> <[2040]> "assistant")?'
    )
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(with_tokens.source), matching_tokenizer())
    answered = detect(family_templates.GPT_OSS).grammar("", tool_use(TOOLS), {"type": "object"})
    assert answered is not None
    assert 'answer: "<|channel|>" "final" "<|message|>" %json' in answered.source


@every_format
@pytest.mark.parametrize(
    "calls",
    [
        (("get_weather", '{"days": 3}'),),
        (("get_weather", '{"city": 3}'),),
        (("get_weather", '{"city": "Rome", "at": {"x": "here"}}'),),
        (("get_weather", '{"city": "Rome", "more": 1}'),),
        (("get_time", '{"a": 1}'),),
        (("set_unit", '{"unit": "K"}'),),
        (("unknown", "{}"),),
        (TIME,) * 17,
    ],
)
def test_other_calls_are_not_allowed(template: str, write: Any, calls: tuple[tuple[str, str], ...]) -> None:
    assert not accepts(template, write(*calls), tool_use(TOOLS, "required"))


@every_format
def test_text_is_not_allowed(template: str, write: Any) -> None:
    use = tool_use(TOOLS, "required")
    assert not accepts(template, "Hello.", use)
    assert not accepts(template, "", use)
    assert not accepts(template, write(TIME) + " Hello.", use)
    assert not accepts(template, write(TIME)[:-1], use)


@every_format
def test_a_named_tool_is_called_once(template: str, write: Any) -> None:
    use = tool_use(TOOLS, NAMED)
    assert accepts(template, write(TIME), use)
    assert not accepts(template, write(CITY), use)
    assert not accepts(template, write(TIME, TIME), use)


@every_format
def test_there_is_one_call_where_parallel_calls_are_not_wanted(template: str, write: Any) -> None:
    use = tool_use(TOOLS, "required", parallel=False)
    assert accepts(template, write(CITY), use)
    assert not accepts(template, write(CITY, TIME), use)


@pytest.mark.parametrize(
    "arguments", ['{ "city": "Rome"}', '{"city":"Rome"}', '{"city": "Rome" }', '{\n"city": "Rome"}']
)
@every_format
def test_there_is_no_room_for_white_space_whatever_the_tool_says(template: str, write: Any, arguments: str) -> None:
    if write is not pythonic:
        assert not accepts(template, write(("get_weather", arguments)), tool_use(TOOLS, "required"))


def test_inner_white_space_is_no_matter_of_python_either() -> None:
    use = tool_use(TOOLS, "required")
    assert accepts(templates.TOOLACE, '[get_weather(city="a", at={"x": 1})]', use)
    assert not accepts(templates.TOOLACE, '[get_weather(city="a", at={ "x": 1})]', use)


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("[f()]", True),
        ("[f(a=1)]", True),
        ("[f(b=2)]", True),
        ("[f(a=1, c=3)]", True),
        ("[f(a=1, b=2, c=3)]", True),
        ("[f(c=3, a=1)]", False),
        ("[f(a=1,)]", False),
        ("[f(, a=1)]", False),
        ("[f(a=1 b=2)]", False),
    ],
)
def test_optional_arguments_in_python_have_commas_between_them(text: str, is_allowed: bool) -> None:
    integers = {"type": "object", "properties": {name: {"type": "integer"} for name in "abc"}}
    assert accepts(templates.TOOLACE, text, tool_use([function("f", integers)], "required")) == is_allowed


@pytest.mark.parametrize(
    ("text", "is_allowed"), [("[f(b=2)]", True), ("[f(b=2, a=1)]", True), ("[f(a=1, b=2)]", False)]
)
def test_required_arguments_in_python_come_first(text: str, is_allowed: bool) -> None:
    schema = {"type": "object", "properties": {"a": True, "b": {"type": "integer"}}, "required": ["b"]}
    assert accepts(templates.TOOLACE, text, tool_use([function("f", schema)], "required")) == is_allowed


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a-b": {}}, "required": ["a-b"]},
        {"properties": {"if": {}}, "required": ["if"]},
        {"required": ["a"]},
    ],
)
def test_an_argument_that_python_cannot_name_is_refused_where_it_is_required(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="that f requires") as caught:
        detect(templates.TOOLACE).grammar("", tool_use([function("f", schema)], "required"))
    assert caught.value.param == "tools"


def test_an_argument_that_python_cannot_name_is_left_out_where_it_is_optional() -> None:
    use = tool_use([function("f", {"properties": {"a-b": {}, "c": {}}})], "required")
    assert accepts(templates.TOOLACE, "[f(c=1)]", use)
    assert not accepts(templates.TOOLACE, "[f(a-b=1)]", use)


@pytest.mark.parametrize(
    ("schema", "arguments", "is_allowed"),
    [
        ({"properties": {"a": {}}, "additionalProperties": True}, '{"b": 1}', True),
        ({"properties": {"a": {}}}, '{"b": 1}', False),
        ({"anyOf": [{"required": ["b"]}]}, '{"b": 1}', True),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"b": {"type": "integer"}}}}}, '{"b": 1}', True),
        ({"required": ["b"]}, '{"b": 1}', True),
        ({"properties": {"a": {"not": {"const": 1}}}}, '{"a": 2}', True),
    ],
)
def test_arguments_beyond_those_listed_follow_the_schema(
    schema: dict[str, Any], arguments: str, is_allowed: bool
) -> None:
    use = tool_use([function("f", schema)], "required")
    assert accepts(templates.QWEN_2_5, hermes(("f", arguments)), use) == is_allowed


def test_a_strict_tool_whose_schema_cannot_be_enforced_is_no_grammar() -> None:
    use = tool_use([function("f", {"properties": {"a": {"not": {"const": 1}}}}, strict=True)], "required")
    grammar = detect(templates.QWEN_2_5).grammar("", use)
    assert grammar is not None
    assert "not" in LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar.source), matching_tokenizer())


def test_markers_are_tokens_where_the_model_has_them() -> None:
    grammar = detect(templates.QWEN_2_5).grammar("", tool_use(TOOLS, "required"))
    assert grammar is not None
    assert "<[2044]>" in grammar.source
    assert "tool_call>" not in grammar.source


@every_format
def test_the_largest_tools_make_a_grammar_within_its_limit(template: str, write: Any) -> None:
    schema = {"properties": {"a": {"description": "x" * (MAX_TOOLS_CHARS - 18_000)}}}
    tools = [function(f"{'f' * 60}{i}") for i in range(127)] + [function("g", schema)]
    grammar = detect(template).grammar("", tool_use(tools, "required"))
    assert grammar is not None
    assert len(grammar.source) < MAX_GRAMMAR_CHARS
