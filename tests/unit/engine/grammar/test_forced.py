"""Tokens that come next whatever is sampled: the same at once and one by one, and spelled as the model spells them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.masks import random_token
from orcinus.engine.grammar.matcher import GrammarMatcher
from orcinus.engine.sampling_params import Grammar, Thinking
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.grammar.grammars import DEMO_MODEL, DEMO_VOCAB_SIZE, allowed, demo_compiler, matcher_of
from tests.unit.engine.text.test_tokenizer import write_sentencepiece_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "first_name_of_the_person": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["honorary member", "honest broker"]},
        "at": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "terms": {"const": 'They agree to "all" terms: ünïcode, 日本, 12345678 too.'},
    },
    "required": ["first_name_of_the_person", "kind", "at", "terms"],
    "additionalProperties": False,
}
GRAMMARS = [
    Grammar("json_schema", json.dumps(SCHEMA)),
    Grammar("choice", '["  the first of all", "  the first of the others", "\\t\\n  none"]'),
    Grammar("regex", "[0-9]{2}12345678901[0-9]{2}( don't| don'ts)( +|\\n\\n)the end"),
    Grammar("grammar", 'root ::= ("if (" [a-z]+ ") {\\n    return nothing_at_all;\\n}\\n")+'),
]


def sentencepiece(directory: Path) -> GrammarCompiler:
    tokenizer = Tokenizer.load(str(write_sentencepiece_tokenizer(directory)))
    return GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size, [])


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def compiler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    makers: dict[str, Callable[[], GrammarCompiler]] = {
        "byte-level": demo_compiler,
        "sentencepiece": lambda: sentencepiece(tmp_path_factory.mktemp("sentencepiece")),
    }
    return makers[request.param]()


def walk(matcher: GrammarMatcher, seed: int, *, at_once: bool, max_tokens: int = 150) -> tuple[list[int], int]:
    """Sample tokens whose choice follows from their position, as a draw does; return them, and how many were forced."""
    tokens: list[int] = []
    num_forced = 0
    while len(tokens) < max_tokens and not matcher.is_finished:
        matcher.fill_mask()
        assert matcher.error is None
        assert matcher.mask is not None
        token_id = random_token(matcher.mask, random.Random(f"{seed} {len(tokens)}"))
        assert token_id is not None
        token_id = matcher.replacement_for(token_id)
        matcher.accept(token_id)
        tokens.append(token_id)
        if at_once:
            matcher.take_forced()
            tokens += matcher.forced
            num_forced += len(matcher.forced)
        assert matcher.error is None
    return tokens, num_forced


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda grammar: grammar.kind)
@pytest.mark.parametrize("options", [{}, {"max_tokens": 100}], ids=["free", "limited"])
def test_they_are_the_same_at_once_one_by_one_and_after_any_interruption(
    compiler: GrammarCompiler, grammar: Grammar, options: Any
) -> None:
    num_forced = 0
    limit = options.get("max_tokens", 150)
    for seed in range(12):
        tokens, count = walk(matcher_of(compiler, grammar, **options), seed, at_once=True, max_tokens=limit)
        num_forced += count
        one_by_one, _ = walk(matcher_of(compiler, grammar, **options), seed, at_once=False, max_tokens=limit)
        assert one_by_one[: len(tokens)] == tokens[: len(one_by_one)]
        for done in range(0, len(one_by_one), 7):
            resumed = matcher_of(compiler, grammar, tokens=one_by_one[:done], **options)
            assert resumed.error is None
            assert one_by_one[done] in allowed(resumed)
            resumed.accept(one_by_one[done])
            resumed.take_forced()
            assert one_by_one[done + 1 :][: len(resumed.forced)] == resumed.forced[: len(one_by_one) - done - 1]
    assert num_forced > 30


def test_a_certain_text_is_spelled_as_the_tokenizer_spells_it(compiler: GrammarCompiler) -> None:
    for text in (
        "The first of them all, the others follow.",
        'a "quoted" ünïcode 日本 12345678',
        "x\n\n    indented\n",
    ):
        matcher = matcher_of(compiler, Grammar("choice", json.dumps([text])))
        matcher.fill_mask()
        matcher.take_forced()
        (last,) = allowed(matcher)  # which ends the text: it is sampled
        assert [*matcher.forced, last] == compiler.vocabulary(text)
        assert b"".join(compiler.vocabulary.tokens[i] for i in [*matcher.forced, last]).decode() == text
        matcher.accept(last)
        assert matcher.is_finished


def test_the_end_of_what_is_certain_is_left_to_longer_tokens() -> None:
    """Behind "member" there may be more letters, which one token may have together with some before them."""
    compiler = demo_compiler()
    matcher = matcher_of(compiler, Grammar("regex", "x the certain member[a-z]*!"))
    matcher.take_forced()
    certain = b"".join(compiler.vocabulary.tokens[i] for i in matcher.forced).decode()
    assert "x the certain member".startswith(certain)
    assert len(certain) > 8
    rest = "x the certain member"[len(certain) :]
    spelled = {compiler.vocabulary.tokens[i].decode() for i in allowed(matcher)}
    assert all(rest.startswith(text) or text.startswith(rest) for text in spelled)
    assert len(spelled) > 1


def test_a_bounded_number_comes_at_once_and_none_beyond_the_limit() -> None:
    compiler = demo_compiler()
    grammar = Grammar("regex", "(all work and no play ){100}")
    matcher = matcher_of(compiler, grammar)
    matcher.take_forced()
    assert len(matcher.forced) == 256
    first = matcher.forced
    matcher.take_forced()
    assert first + matcher.forced == compiler.vocabulary("all work and no play " * 100)[:-1]  # the last one is sampled
    limited = matcher_of(compiler, grammar, max_tokens=7)
    limited.take_forced()
    assert len(limited.forced) == 7
    limited.take_forced()
    assert limited.forced == []


def test_nothing_is_forced_in_thinking_or_before_it_may_begin() -> None:
    compiler = demo_compiler()
    end = tuple(compiler.vocabulary("\n"))
    for start in (None, 5):
        grammar = Grammar("choice", '["the only answer"]', thinking=Thinking(end=end, start=start))
        matcher = matcher_of(compiler, grammar)
        matcher.take_forced()
        assert matcher.forced == []
        for token_id in [*([] if start is None else [start]), 300, *end]:
            assert matcher.forced == []
            matcher.accept(token_id)
            matcher.take_forced()
        assert matcher.forced == compiler.vocabulary("the only answer")[:-1]


def test_a_vocabulary_that_could_not_be_loaded_is_tried_again() -> None:
    tokenizers: list[Any] = []

    def load() -> Tokenizer:
        tokenizers.append(None)
        if len(tokenizers) == 1:
            raise ModelLoadError("no tokenizer")
        return Tokenizer.load(str(DEMO_MODEL))

    compiler = GrammarCompiler(load, DEMO_VOCAB_SIZE, [2])
    with pytest.raises(ModelLoadError, match="no tokenizer"):
        compiler.load().result()
    loading = compiler.load()
    assert compiler.load() is loading
    assert compiler.vocabulary is loading.result()
    assert len(tokenizers) == 2
