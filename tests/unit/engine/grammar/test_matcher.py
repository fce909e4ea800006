"""Grammars over tokens: what may come next, when a text is complete, and what is refused."""

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.matcher import GrammarMatcher
from orcinus.engine.grammar.source import MAX_CHOICES, MAX_DEPTH, MAX_ENUM_VALUES, MAX_PROPERTIES
from orcinus.engine.sampling_params import Grammar, Thinking
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.fakes import END_OF_TEXT, MESSAGE_END, MESSAGE_START, VOCAB_SIZE, write_byte_tokenizer
from tests.unit.engine.grammar.grammars import (
    accepts,
    allowed,
    demo_compiler,
    feed,
    matcher_of,
    random_text,
    texts_allowed,
    thinking,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(str(write_byte_tokenizer(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: tokenizer, VOCAB_SIZE, [END_OF_TEXT])


@pytest.fixture(scope="module")
def demo() -> GrammarCompiler:
    return demo_compiler()


def regex(pattern: str, **fields: Any) -> Grammar:
    return Grammar("regex", pattern, **fields)


def schema(**keywords: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(keywords))


# --- what may come next ---------------------------------------------------------------------------------


def test_only_what_continues_the_text_may_come_next(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = matcher_of(compiler, regex("ab|ac|b"))
    assert texts_allowed(matcher, tokenizer) == {"a", "b"}
    matcher.accept(ord("a"))
    assert texts_allowed(matcher, tokenizer) == {"b", "c"}


def test_the_end_may_come_where_the_text_is_complete_and_not_before(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, regex("a[ab]*"))
    assert END_OF_TEXT not in allowed(matcher)
    matcher.accept(ord("a"))
    assert allowed(matcher) == {ord("a"), ord("b"), END_OF_TEXT}
    assert not matcher.is_finished


def test_a_text_that_nothing_can_follow_is_finished(compiler: GrammarCompiler) -> None:
    assert feed(matcher_of(compiler, regex("ab?")), b"ab").is_finished
    assert not feed(matcher_of(compiler, regex("ab?")), b"a").is_finished
    assert feed(matcher_of(compiler, Grammar("json_object")), b'{"a": [1, {}]}').is_finished


def test_every_end_token_of_the_model_may_end_a_text(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(lambda: tokenizer, VOCAB_SIZE, [END_OF_TEXT, MESSAGE_END])
    for end in (END_OF_TEXT, MESSAGE_END):
        matcher = feed(matcher_of(compiler, regex("a*")), b"a")
        assert allowed(matcher) == {ord("a"), END_OF_TEXT, MESSAGE_END}
        matcher.accept(end)
        assert matcher.is_finished
        assert matcher.error is None


def test_a_model_without_an_end_token_ends_where_nothing_can_follow(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(lambda: tokenizer, VOCAB_SIZE, [])
    assert feed(matcher_of(compiler, regex("ab")), b"ab").is_finished
    assert allowed(feed(matcher_of(compiler, regex("a*")), b"a")) == {ord("a"), VOCAB_SIZE}


def test_an_ignored_end_is_allowed_only_where_nothing_else_is(compiler: GrammarCompiler) -> None:
    assert allowed(feed(matcher_of(compiler, regex("a*"), ignore_eos=True), b"a")) == {ord("a")}
    matcher = matcher_of(compiler, regex(""), ignore_eos=True)
    assert allowed(matcher) == {END_OF_TEXT}
    matcher.accept(END_OF_TEXT)
    assert matcher.is_finished


def test_special_tokens_are_no_text(compiler: GrammarCompiler) -> None:
    """Not even where the text has their names."""
    matcher = matcher_of(compiler, schema(const="<|end|>"))
    assert feed(matcher, b'"<|end|>"').is_finished
    assert not allowed(matcher_of(compiler, regex(".*"))) & {MESSAGE_START, MESSAGE_END}


def test_tokens_that_the_tokenizer_does_not_know_are_never_allowed(tokenizer: Tokenizer) -> None:
    """Models pad their vocabulary; some have less than their tokenizer."""
    padded = GrammarCompiler(lambda: tokenizer, VOCAB_SIZE + 77, [END_OF_TEXT])
    assert max(allowed(matcher_of(padded, regex("(?s:.*)")))) == END_OF_TEXT
    cut = GrammarCompiler(lambda: tokenizer, 200, [END_OF_TEXT])
    assert allowed(matcher_of(cut, regex("a|é"))) == {ord("a"), 0xC3}


def test_a_wrong_token_is_an_error_of_this_matcher_alone(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, regex("ab"))
    matcher.accept(ord("x"))
    assert matcher.error is not None
    assert not matcher.is_finished
    assert feed(matcher_of(compiler, regex("ab")), b"ab").is_finished


def test_a_resumed_request_goes_on_where_it_was(demo: GrammarCompiler) -> None:
    grammar = schema(type="object", properties={"a": {"type": "string"}}, required=["a"])
    tokens = demo.vocabulary('{"a": "some text, é')
    for end in range(len(tokens) + 1):
        resumed = matcher_of(demo, grammar, tokens=tokens[:end])
        assert allowed(resumed) == allowed(feed(matcher_of(demo, grammar), tokens[:end]))


# --- thinking -------------------------------------------------------------------------------------------


def test_thinking_is_free_until_it_ends(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, regex("ab", thinking=thinking("</t>")))
    anything = set(range(VOCAB_SIZE)) - {END_OF_TEXT}
    for token_id in b"x</t </t>":
        assert allowed(matcher) >= anything
        assert END_OF_TEXT not in allowed(matcher)
        matcher.accept(token_id)
    assert feed(matcher, b"ab").is_finished


def test_thinking_that_the_output_may_open_is_open_only_as_its_first_token(compiler: GrammarCompiler) -> None:
    grammar = regex("ab*", thinking=thinking("!", start=MESSAGE_START))
    matcher = matcher_of(compiler, grammar)
    assert allowed(matcher) == {ord("a"), MESSAGE_START}
    assert allowed(feed(matcher_of(compiler, grammar), b"a")) == {ord("b"), END_OF_TEXT}
    thought = feed(matcher, [MESSAGE_START, *b"what?!", *b"ab"])
    assert allowed(thought) == {ord("b"), END_OF_TEXT}


def test_thinking_is_replayed_too(compiler: GrammarCompiler) -> None:
    grammar = regex("ab", thinking=thinking("!", start=MESSAGE_START))
    resumed = matcher_of(compiler, grammar, tokens=[MESSAGE_START, *b"b!a"])
    assert allowed(resumed) == {ord("b")}


def budgeted(budget: int, start: int | None = None) -> Thinking:
    return Thinking(end=(ord("!"),), start=start, budget=budget, forced=(*b"\n!\n\n",))


def drawing(matcher: GrammarMatcher, token_id: int, count: int) -> bytes:
    """Return what is taken where this token is drawn whenever it may come next, and the least one elsewhere."""
    taken = []
    for _ in range(count):
        may_come = allowed(matcher)
        taken.append(matcher.replacement_for(token_id if token_id in may_come else min(may_come)))
        assert taken[-1] in may_come
        matcher.accept(taken[-1])
        assert matcher.error is None
    return bytes(taken)


def test_thinking_beyond_its_budget_is_ended_and_what_is_forced_is_not_the_grammars(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, regex("ab", thinking=budgeted(3)))
    assert not allowed(matcher) & {END_OF_TEXT}
    assert drawing(matcher, ord("x"), 9) == b"xxx\n!\n\nab"
    assert matcher.is_finished
    assert not matcher.is_steered
    for end in range(9):
        resumed = matcher_of(compiler, regex("ab", thinking=budgeted(3)), tokens=b"xxx\n!\n\nab"[:end])
        assert drawing(resumed, ord("x"), 9 - end) == b"xxx\n!\n\nab"[end:]


def test_thinking_that_ends_by_itself_within_its_budget_is_as_without_one(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, regex("ab", thinking=budgeted(3)))
    assert feed(matcher, b"xx!ab").is_finished


def test_the_end_of_thinking_is_forced_whatever_else_rules_it_out(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, regex("ab", thinking=budgeted(1)))
    feed(matcher, b"x")
    assert matcher.overrules
    assert not feed(matcher, b"\n!\n\n").overrules


def test_with_a_budget_of_nothing_no_thinking_is_begun(compiler: GrammarCompiler) -> None:
    begun = matcher_of(compiler, regex("ab", thinking=budgeted(0)))
    assert drawing(begun, ord("x"), 6) == b"\n!\n\nab"
    assert allowed(matcher_of(compiler, regex("ab", thinking=budgeted(0, MESSAGE_START)))) == {ord("a")}
    assert allowed(matcher_of(compiler, regex("ab", thinking=budgeted(1, MESSAGE_START)))) == {ord("a"), MESSAGE_START}


def test_thinking_leaves_max_tokens_for_the_text(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, Grammar("json_object", thinking=budgeted(100)), max_tokens=24)
    text = drawing(matcher, ord("x"), 24)
    assert text[:18] == b"x" * 14 + b"\n!\n\n"
    assert json.loads(text[18:]) == {}


# --- JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ['{"a": 1, "b": [true, null]}', '{"a":1,"b":[]}', '{\n  "a": 1,\n  "b": [\n    "x"\n  ]\n}', "{}"]
)
def test_json_may_be_written_on_one_line_compactly_or_indented(demo: GrammarCompiler, text: str) -> None:
    assert accepts(demo, Grammar("json_object"), text)


@pytest.mark.parametrize("text", ["[]", "1", " {}", "{} ", '{"a": 1', '{"a"  : 1}', "{\n\n}", "{a: 1}", '{"a": 01}'])
def test_json_object_is_an_object_without_free_white_space(demo: GrammarCompiler, text: str) -> None:
    assert not accepts(demo, Grammar("json_object"), text)


def test_white_space_has_an_end(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, Grammar("json_object"))
    num_spaces = 0
    feed(matcher, b"{\n")
    while ord(" ") in allowed(matcher):
        matcher.accept(ord(" "))
        num_spaces += 1
    assert num_spaces == 40


SCHEMAS: dict[str, dict[str, Any]] = {
    "person": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "é", 3]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "number": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 20},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 99},
    "pattern": {"type": "string", "pattern": "^[a-f]{2,4}(-[0-9]+)?$"},
    "date": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "any of": {"anyOf": [{"type": "null"}, {"type": "boolean"}, {"const": {"k": ["v"]}}]},
    "one of": {"oneOf": [{"type": "object", "properties": {"t": {"const": t}}, "required": ["t"]} for t in "xy"]},
    "tuple": {"type": "array", "prefixItems": [{"type": "null"}, {"type": "integer"}], "items": False, "minItems": 2},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "map": {
        "type": "object",
        "patternProperties": {"^a": {"type": "null"}},
        "additionalProperties": {"type": "integer"},
    },
    "free": {"type": ["array", "string"], "items": {"type": "boolean"}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_texts_of_a_schema_are_valid(demo: GrammarCompiler, name: str) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    grammar = schema(**SCHEMAS[name])
    rng = random.Random(name)
    num_complete = 0
    for _ in range(30):
        text = random_text(demo, grammar, rng, max_tokens=150)
        if text is not None:
            validator.validate(json.loads(text))
            num_complete += 1
    assert num_complete >= 10


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "null"}}, "not"),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, "then"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "array", "contains": {"type": "null"}}, "contains"),
        ({"propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"anyOf": [{"properties": {"a": {}}}, {}], "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "http://example.org/schema.json"}, "http://example.org/schema.json"),
        ({"$ref": "file:///etc/passwd"}, "file:///etc/passwd"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"enum": []}, "Unsatisfiable"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"properties": {"a": {"x-guidance": {"lenient": True}, "not": {}}}}, "not"),
    ],
)
def test_what_a_schema_cannot_ask_is_refused_by_name(compiler: GrammarCompiler, keywords: Any, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        compiler.compile("json_schema", json.dumps(keywords))


def test_a_property_may_be_called_as_the_options_are(compiler: GrammarCompiler) -> None:
    named = schema(type="object", properties={"x-guidance": {"type": "null"}}, additionalProperties=False)
    assert accepts(compiler, named, '{"x-guidance": null}')


@pytest.mark.parametrize(
    ("keywords", "limit"),
    [
        ({"enum": list(range(MAX_ENUM_VALUES + 1))}, MAX_ENUM_VALUES),
        ({"properties": {str(i): {} for i in range(MAX_PROPERTIES + 1)}}, MAX_PROPERTIES),
    ],
)
def test_schemas_beyond_the_limits_are_refused_with_both_numbers(
    compiler: GrammarCompiler, keywords: Any, limit: int
) -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {limit} .*got {limit + 1}"):
        compiler.compile("json_schema", json.dumps(keywords))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 100_000])
def test_deep_schemas_are_refused(compiler: GrammarCompiler, depth: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"nests? at most {MAX_DEPTH} deep"):
        compiler.compile("json_schema", '{"items":' * depth + "{}" + "}" * depth)


@pytest.mark.parametrize("source", ["{", "3", '"a"', "NaN", '{"type": "integr"}'])
def test_what_is_no_schema_is_refused(compiler: GrammarCompiler, source: str) -> None:
    with pytest.raises(InvalidRequestError, match="the schema"):
        compiler.compile("json_schema", source)


def test_true_is_the_schema_of_any_json(compiler: GrammarCompiler) -> None:
    assert accepts(compiler, Grammar("json_schema", "true"), '[1, "a"]')


# --- regular expressions, choices and grammars ----------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(choices=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
def test_choices_are_allowed_to_the_letter_and_nothing_else(compiler: GrammarCompiler, choices: list[str]) -> None:
    grammar = Grammar("choice", json.dumps(choices))
    for choice in choices:
        assert accepts(compiler, grammar, choice)
        assert accepts(compiler, grammar, choice + "x") == (choice + "x" in choices)
        assert accepts(compiler, grammar, choice[:-1]) == (choice[:-1] in choices)


@pytest.mark.parametrize("source", ["[]", '["a", ""]', '["a", 1]', '"a"', "[", json.dumps(["a"] * (MAX_CHOICES + 1))])
def test_what_is_no_list_of_choices_is_refused(compiler: GrammarCompiler, source: str) -> None:
    with pytest.raises(InvalidRequestError, match="choice"):
        compiler.compile("choice", source)


def test_a_regular_expression_matches_the_whole_text(compiler: GrammarCompiler) -> None:
    for pattern in ("[0-9]{2,3}", "^[0-9]{2,3}$"):
        assert accepts(compiler, regex(pattern), "123")
        assert not accepts(compiler, regex(pattern), "a123")
        assert not accepts(compiler, regex(pattern), "1234")


@pytest.mark.parametrize("pattern", ["[a", "(", r"\bword", "(?!x)y", "(" * 5000 + "a" + ")" * 5000])
def test_a_regular_expression_that_cannot_be_followed_is_refused(compiler: GrammarCompiler, pattern: str) -> None:
    with pytest.raises(InvalidRequestError, match="the regular expression cannot be used"):
        compiler.compile("regex", pattern)


LARK = 'start: greeting " " name\ngreeting: "hello" | "bye"\nname: /[A-Z][a-z]+/\n'
GBNF = 'root ::= greeting " " name\ngreeting ::= "hello" | "bye"\nname ::= [A-Z] [a-z]+\n'


@pytest.mark.parametrize("source", [LARK, GBNF])
def test_grammars_may_be_written_as_lark_and_as_gbnf(compiler: GrammarCompiler, source: str) -> None:
    grammar = Grammar("grammar", source)
    assert accepts(compiler, grammar, "hello Ada")
    assert not accepts(compiler, grammar, "hello ada")


def test_a_lark_grammar_may_have_schemas_and_tokens_in_it(compiler: GrammarCompiler) -> None:
    options = '"x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}'
    grammar = Grammar("grammar", f'start: <[{MESSAGE_START}]> %json {{"type": "object", {options}}} <[{MESSAGE_END}]>')
    matcher = feed(matcher_of(compiler, grammar), [MESSAGE_START, *b'{"a": 1, "b": 2}'])
    assert allowed(matcher) == {MESSAGE_END}
    matcher.accept(MESSAGE_END)
    assert matcher.is_finished


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('start: "a" b', "unknown name"),
        ('root ::= "a', "GBNF"),
        ("root ::= " + "(" * 20_000, "GBNF"),
        ('root ::= "a" nobody', "GBNF grammar cannot be read: .*nobody"),
        ('start: "a"\n%import other.rules.X', "other.rules.X"),
        ("start: @elsewhere", "elsewhere"),
        ('%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "options"),
        ("root ::= " + '"a" ' * 20_000, "at most 65536 characters"),
    ],
)
def test_grammars_with_errors_and_links_to_outside_are_refused(
    compiler: GrammarCompiler, source: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        compiler.compile("grammar", source)


def test_a_grammar_at_its_limits_fails_alone(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, regex("((a{0,100}){0,100}){0,100}"))
    for _ in range(100):
        matcher.fill_mask()
        if matcher.error is not None:
            break
        matcher.accept(ord("a"))
    assert matcher.error is not None
    assert feed(matcher_of(compiler, regex("a{0,9}b")), b"aab").is_finished
