"""Texts that are brought to an end of their grammar before their tokens run out."""

import json
import random
from collections.abc import Collection
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.engine.grammar import closing
from orcinus.engine.grammar.closing import PathFinder, StartPaths
from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.masks import tokens_in
from orcinus.engine.grammar.matcher import GrammarMatcher
from orcinus.engine.sampling_params import Grammar
from orcinus.engine.text.tokenizer import Tokenizer
from tests.effort import scaled, slow_but_for
from tests.unit.engine.fakes import END_OF_TEXT, MESSAGE_START, VOCAB_SIZE, write_byte_tokenizer
from tests.unit.engine.grammar.grammars import DEMO_ENDS, demo_compiler, matcher_of, thinking
from tests.unit.engine.grammar.test_matcher import SCHEMAS

MANY = 10_000


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


def rows(num_columns: int) -> dict[str, Any]:
    """A schema in which each row that is begun is far from its end."""
    columns = {f"column {i}": {"type": "string"} for i in range(num_columns)}
    row = {"type": "object", "properties": columns, "required": [*columns], "additionalProperties": False}
    return {"type": "array", "items": row}


HARD: dict[str, dict[str, Any]] = {
    **SCHEMAS,
    "any": {},
    "deep": nested(20),
    "rows": rows(10),
    "many items": {"type": "array", "items": {"type": "integer", "minimum": 100}, "minItems": 20},
    "long strings": {"type": "array", "items": {"type": "string", "minLength": 30}, "minItems": 3},
    "enum": {"enum": ["a long alternative", "another one", "short"]},
    "no power of ten": {"type": "integer", "multipleOf": 7, "minimum": 10},
    "email": {"type": "object", "properties": {"to": {"type": "string", "format": "email"}}, "required": ["to"]},
    "free strings": {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "string"}}},
        "required": ["a", "b"],
    },
}
OTHERS = {
    "object": Grammar("json_object"),
    "choice": Grammar("choice", '["Paris", "Rome", "Ro"]'),
    "groups": Grammar("regex", "(abc)*"),
    "markers": Grammar("regex", "(?s:[^<]*)</end>"),
    "lark": Grammar("grammar", 'start: "[" item ("," item)* "]"\nitem: /[a-z]+/ | start'),
}
GRAMMARS = {name: Grammar("json_schema", json.dumps(schema)) for name, schema in HARD.items()} | OTHERS


@pytest.fixture(scope="module")
def demo() -> GrammarCompiler:
    return demo_compiler()


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    tokenizer = Tokenizer.load(str(write_byte_tokenizer(tmp_path_factory.mktemp("model"))))
    return GrammarCompiler(lambda: tokenizer, VOCAB_SIZE, [END_OF_TEXT])


def path_in(compiler: GrammarCompiler, grammar: Grammar) -> list[int]:
    found = compiler.vocabulary.path_finder.find_path(compiler.compile(grammar.kind, grammar.source).automaton(), MANY)
    assert found is not None
    return found


def text_of(compiler: GrammarCompiler, token_ids: list[int]) -> str:
    ends = compiler.vocabulary.end_ids
    return b"".join(compiler.vocabulary.tokens[i] for i in token_ids if i not in ends).decode(errors="replace")


def take(matcher: GrammarMatcher, drawn: int) -> int:
    """Return what is taken where a token is drawn, with a mask before it, as in a step."""
    matcher.fill_mask()
    taken = matcher.replacement_for(drawn)
    matcher.accept(taken)
    assert matcher.error is None, matcher.error
    return taken


def generate(matcher: GrammarMatcher, rng: random.Random, max_tokens: int, *, eager: Collection[int] = ()) -> list[int]:
    """Tokens drawn at random from what is allowed, every other time from the `eager` ones."""
    taken: list[int] = []
    while len(taken) < max_tokens and not matcher.is_finished:
        matcher.fill_mask()
        assert matcher.mask is not None
        allowed = [int(token_id) for token_id in tokens_in(matcher.mask)]
        preferred = [token_id for token_id in allowed if token_id in eager]
        drawn = rng.choice(preferred if preferred and rng.random() < 0.6 else allowed)
        taken.append(matcher.replacement_for(drawn))
        matcher.accept(taken[-1])
        assert matcher.error is None, matcher.error
    return taken


def continued(matcher: GrammarMatcher, seed: int, taken: list[int], max_tokens: int, eager: set[int]) -> list[int]:
    """With draws that are a matter of the seed and the position, as a request's are."""
    while len(taken) < max_tokens and not matcher.is_finished:
        rng = random.Random(f"{seed} {len(taken)}")
        taken = taken + generate(matcher, rng, 1, eager=eager)
    return taken


def structure(compiler: GrammarCompiler) -> set[int]:
    """Return what opens and continues objects and ends strings: drawn often, it makes long paths."""
    return {i for byte in '"{,:' for i in compiler.vocabulary(byte)}


def is_whole(compiler: GrammarCompiler, grammar: Grammar, token_ids: list[int]) -> bool:
    matcher = compiler.compile(grammar.kind, grammar.source).automaton()
    return matcher.consume_tokens(token_ids) and matcher.is_accepting()


# --- the path to the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HARD)
def test_the_way_from_the_start_is_a_valid_text(demo: GrammarCompiler, name: str) -> None:
    text = text_of(demo, path_in(demo, GRAMMARS[name]))
    jsonschema.Draft202012Validator(HARD[name]).validate(json.loads(text))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("any", '""'),
        ("object", "{}"),
        ("map", "{}"),
        ("rows", "[]"),
        ("groups", ""),
        ("any of", "null"),
        ("tuple", "[null,0]"),
        ("tree", '{"next":null}'),
        ("free strings", '{"a":"","b":[]}'),
    ],
)
def test_the_way_is_short(demo: GrammarCompiler, name: str, text: str) -> None:
    assert text_of(demo, path_in(demo, GRAMMARS[name])) == text


def test_the_way_goes_through_special_tokens(compiler: GrammarCompiler) -> None:
    marked = Grammar("grammar", f'start: <[{MESSAGE_START}]> "b" <[{MESSAGE_START}]>')
    assert path_in(compiler, marked) == [MESSAGE_START, ord("b"), MESSAGE_START]


def test_the_way_to_another_choice_is_taken_where_the_first_is_too_long(demo: GrammarCompiler) -> None:
    choices = Grammar("choice", '["a very long alternative that takes many tokens", "z"]')
    matcher = demo.compile(choices.kind, choices.source).automaton()
    assert demo.vocabulary.path_finder.find_path(matcher, 3) == demo.vocabulary("z")
    assert demo.vocabulary.path_finder.find_path(matcher, 0) is None
    assert demo.vocabulary.path_finder.find_path(matcher, 3) is not None, "the matcher stays where it is"


# --- within the limit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAMMARS)
@settings(max_examples=scaled(20), deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), extra=st.integers(0, 60), is_eager=st.booleans())
def test_any_text_is_whole_at_any_limit_that_the_shortest_keeps(
    demo: GrammarCompiler, name: str, seed: int, extra: int, is_eager: bool
) -> None:
    grammar = GRAMMARS[name]
    max_tokens, eager = len(path_in(demo, grammar)) + extra, structure(demo) if is_eager else ()
    tokens = generate(matcher_of(demo, grammar, max_tokens=max_tokens), random.Random(seed), max_tokens, eager=eager)
    assert len(tokens) <= max_tokens
    assert is_whole(demo, grammar, [token_id for token_id in tokens if token_id not in demo.vocabulary.end_ids])


@pytest.mark.parametrize("max_tokens", slow_but_for([300, 700, 1500], 300))
def test_a_long_text_is_whole_too(demo: GrammarCompiler, max_tokens: int) -> None:
    grammar = GRAMMARS["rows"]
    for seed in range(4):
        matcher = matcher_of(demo, grammar, max_tokens=max_tokens)
        tokens = generate(matcher, random.Random(seed), max_tokens, eager=structure(demo))
        assert is_whole(demo, grammar, tokens)


@pytest.mark.parametrize("name", ["choice", "person", "rows", "object"])
def test_tokens_that_leave_enough_room_are_taken_as_they_are_drawn(demo: GrammarCompiler, name: str) -> None:
    """No limit changes a text that keeps it, but for what is saved by tokens that close several things at once."""
    num_compared = 0
    for seed in range(30):
        free = generate(matcher_of(demo, GRAMMARS[name]), random.Random(seed), 60, eager=structure(demo))
        if is_whole(demo, GRAMMARS[name], free):
            matcher = matcher_of(demo, GRAMMARS[name], max_tokens=len(free) + 10 * (name != "choice"))
            assert [take(matcher, drawn) for drawn in free] == free
            assert not matcher.is_steered
            num_compared += 1
    assert num_compared >= 3


def test_a_token_after_which_the_text_could_not_end_in_time_is_replaced(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, Grammar("regex", '"[a-z]*"'), max_tokens=4)
    assert [take(matcher, drawn) for drawn in b'"ab'] == [*b'"ab']
    was_steered = matcher.is_steered
    assert take(matcher, ord("c")) == ord('"')
    assert (was_steered, matcher.is_steered, matcher.is_finished) == (False, True, True)


def test_a_text_that_is_whole_ends_where_nothing_else_fits(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, GRAMMARS["groups"], max_tokens=5)
    assert [take(matcher, drawn) for drawn in b"abc"] == [*b"abc"]
    assert take(matcher, ord("a")) == END_OF_TEXT
    assert matcher.is_finished
    assert matcher.is_steered


def test_a_limit_below_the_shortest_text_changes_nothing(compiler: GrammarCompiler) -> None:
    matcher = matcher_of(compiler, Grammar("regex", '"[a-z]{3,9}"'), max_tokens=4)
    assert [take(matcher, drawn) for drawn in b'"abc'] == [*b'"abc']
    assert not matcher.is_steered


def test_a_token_that_somebody_else_chose_is_followed(compiler: GrammarCompiler) -> None:
    """Another parameter may rule out the one that leads to the end; what can be done after it is done."""
    matcher = matcher_of(compiler, Grammar("regex", "(ab)*c?d"), max_tokens=4)
    matcher.fill_mask()
    assert matcher.replacement_for(ord("a")) == ord("a")
    matcher.accept(ord("c"))
    assert not matcher.is_steered
    assert take(matcher, ord("d")) == ord("d")
    assert matcher.is_finished


def test_thinking_counts_and_is_left_alone(compiler: GrammarCompiler) -> None:
    grammar = Grammar("regex", '"[a-z]*"', thinking=thinking("!", start=MESSAGE_START))
    matcher = matcher_of(compiler, grammar, max_tokens=7)
    for token_id in [MESSAGE_START, *b'hm!"a']:
        assert take(matcher, token_id) == token_id
    assert take(matcher, ord("b")) == ord('"')
    assert matcher.is_finished


@pytest.mark.parametrize("name", ["free strings", "rows", "person", "object", "markers", "lark", "no power of ten"])
def test_a_text_that_is_resumed_anywhere_is_the_same_as_one_that_is_not(demo: GrammarCompiler, name: str) -> None:
    grammar, eager, num_steered = GRAMMARS[name], structure(demo), 0
    max_tokens = len(path_in(demo, grammar)) + 20
    for seed in range(3):
        matcher = matcher_of(demo, grammar, max_tokens=max_tokens)
        whole = continued(matcher, seed, [], max_tokens, eager)
        num_steered += matcher.is_steered
        for position in range(len(whole)):
            resumed = matcher_of(demo, grammar, max_tokens=max_tokens, tokens=whole[:position])
            assert continued(resumed, seed, whole[:position], max_tokens, eager) == whole
    assert num_steered > 0


def test_a_text_that_is_resumed_before_its_end_is_near_is_the_same_too(demo: GrammarCompiler) -> None:
    grammar, eager, max_tokens = GRAMMARS["rows"], structure(demo), 700
    whole = continued(matcher_of(demo, grammar, max_tokens=max_tokens), 1, [], max_tokens, eager)
    assert len(whole) > 600
    for position in (0, 100, 300, 400, 450, 500, 600, len(whole) - 1):
        resumed = matcher_of(demo, grammar, max_tokens=max_tokens, tokens=whole[:position])
        assert continued(resumed, 1, whole[:position], max_tokens, eager) == whole


def test_a_text_that_is_resumed_while_it_is_thought_about_is_the_same(compiler: GrammarCompiler) -> None:
    grammar = Grammar("regex", '"[a-z]*"', thinking=thinking("!", start=MESSAGE_START))
    drawn = [MESSAGE_START, *b'hm!"ab']
    for position in range(len(drawn)):
        resumed = matcher_of(compiler, grammar, max_tokens=7, tokens=drawn[:position])
        assert [take(resumed, token_id) for token_id in drawn[position:]] == [*drawn[position:-1], ord('"')]
        assert resumed.is_finished


# --- what it costs --------------------------------------------------------------------------------------


def test_no_way_is_looked_for_while_there_is_a_lot_of_room(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def find(self: PathFinder, matcher: Any, max_tokens: int) -> list[int]:
        looks.append(max_tokens)
        return [1] * 10

    monkeypatch.setattr(PathFinder, "find_path", find)
    matcher = matcher_of(compiler, Grammar("regex", "a*"), max_tokens=MANY)
    for _ in range(MANY - 400):
        take(matcher, ord("a"))
    assert max(looks) <= 2 * closing.MAX_PATH_TOKENS
    assert len(looks) < 20


def test_a_grammar_without_a_way_is_left_alone_and_asked_once(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(StartPaths, "within", lambda self, max_tokens: looks.append(max_tokens))
    monkeypatch.setattr(PathFinder, "find_path", None)
    matcher = matcher_of(compiler, Grammar("regex", "a*"), max_tokens=5)
    assert [take(matcher, ord("a")) for _ in range(5)] == [ord("a")] * 5
    assert looks == [5]


def test_a_way_with_too_many_choices_is_none_however_busy_the_machine_is(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "_MAX_CHOICES", 0)
    matcher = matcher_of(compiler, Grammar("regex", '"[a-z]*"'), max_tokens=3)
    assert [take(matcher, drawn) for drawn in b'"ab'] == [*b'"ab']
    assert not matcher.is_steered


def test_an_automaton_that_is_far_too_slow_fails_its_request(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To leave it alone would make the text a matter of how fast the machine is."""
    monkeypatch.setattr(closing, "_TIMEOUT_S", -1.0)
    matcher = matcher_of(compiler, Grammar("regex", '"[a-z]*"'), max_tokens=3)
    matcher.fill_mask()
    assert matcher.error == "the grammar is too complex: it takes too long to find an end of the text"
    assert matcher.replacement_for(ord('"')) == ord('"')


@pytest.mark.parametrize("max_tokens", [220, 900])
@pytest.mark.parametrize("pattern", ["[a-z ]{200}", '[{]"a": "[a-z ]{80,90}", "b": 1[}]'])
def test_what_repeats_a_bounded_number_of_times_is_searched_through_once_for_all_its_texts(
    demo: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, pattern: str, max_tokens: int
) -> None:
    grammar = Grammar("regex", pattern)
    compiled = demo.compile(grammar.kind, grammar.source)
    compiled.search_end(max_tokens)
    monkeypatch.setattr(closing, "_PathSearch", None)
    rng = random.Random(max_tokens)
    for _ in range(3):
        taken = generate(compiled.matcher(max_tokens=max_tokens), rng, max_tokens)
        assert is_whole(demo, grammar, taken)


@pytest.mark.parametrize(
    ("path", "num_bytes", "rest"),
    [("abc", 0, "abc"), ("abc", 2, "c"), ("abc", 3, ""), ("abc", 7, ""), ("", 4, "")],
)
def test_the_rest_of_a_way_begins_after_so_many_bytes(
    compiler: GrammarCompiler, path: str, num_bytes: int, rest: str
) -> None:
    assert compiler.vocabulary.path_finder.rest_after([*path.encode()], num_bytes) == [*rest.encode()]


def test_there_is_no_rest_where_the_bytes_end_within_a_token_or_a_marker_stands_before(demo: GrammarCompiler) -> None:
    path_finder = demo.vocabulary.path_finder
    word = path_finder.sizes.index(3)
    assert path_finder.rest_after([word], 2) is None
    assert path_finder.rest_after([word, word], 3) == [word]
    assert path_finder.rest_after([DEMO_ENDS[0], word], 3) is None
    assert path_finder.rest_after([DEMO_ENDS[0], word], 0) == [DEMO_ENDS[0], word]


def test_a_grammar_that_is_too_slow_once_is_too_slow_for_all_its_texts(
    demo: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = demo.compile("regex", "[a-z]{20}")
    monkeypatch.setattr(closing, "_TIMEOUT_S", -1.0)
    compiled.search_end(30)
    monkeypatch.undo()
    for _ in range(2):
        matcher = compiled.matcher(max_tokens=30)
        matcher.fill_mask()
        assert matcher.error is not None
        assert "too long to find an end" in matcher.error


def test_a_matcher_that_was_given_up_is_not_touched(demo: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread may still be busy with it."""
    matcher = matcher_of(demo, GRAMMARS["person"], max_tokens=20)
    matcher.fill_mask()
    matcher.fail("too slow")
    monkeypatch.setattr(matcher, "_matcher", None)
    assert matcher.replacement_for(ord("x")) == ord("x")
