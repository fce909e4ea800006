"""Grammars over the tokens of bytes and of the demo model, and walks through them at random."""

import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.masks import has_token, tokens_in
from orcinus.engine.grammar.matcher import GrammarMatcher
from orcinus.engine.sampling_params import Grammar, Thinking
from orcinus.engine.text.tokenizer import Tokenizer

DEMO_MODEL = Path(__file__).parents[4] / "engine" / "demo_model"
DEMO_VOCAB_SIZE = 2048
DEMO_ENDS = (2, 0)


def demo_compiler() -> GrammarCompiler:
    return GrammarCompiler(lambda: Tokenizer.load(str(DEMO_MODEL)), DEMO_VOCAB_SIZE, DEMO_ENDS)


def matcher_of(compiler: GrammarCompiler, grammar: Grammar, **options: Any) -> GrammarMatcher:
    return compiler.compile(grammar.kind, grammar.source).matcher(grammar.thinking, **options)


def allowed(matcher: GrammarMatcher) -> set[int]:
    matcher.fill_mask()
    assert matcher.mask is not None
    assert matcher.error is None, matcher.error
    return set(tokens_in(matcher.mask).tolist())


def allows(matcher: GrammarMatcher, token_id: int) -> bool:
    matcher.fill_mask()
    assert matcher.mask is not None
    assert matcher.error is None, matcher.error
    return has_token(matcher.mask, token_id)


def texts_allowed(matcher: GrammarMatcher, tokenizer: Tokenizer) -> set[str]:
    """Return what may come next, as text; an end is ''."""
    ids = allowed(matcher)
    return {"" if i in tokenizer.special_ids else tokenizer.token_bytes(i).decode(errors="replace") for i in ids}


def feed(matcher: GrammarMatcher, token_ids: Iterable[int]) -> GrammarMatcher:
    for token_id in token_ids:
        assert allows(matcher, token_id), token_id
        matcher.accept(token_id)
        assert matcher.mask is not None
    assert matcher.error is None, matcher.error
    return matcher


def accepts(compiler: GrammarCompiler, grammar: Grammar, text: str) -> bool:
    """Whether the whole text, byte by byte or in the model's own tokens, is one that the grammar allows."""
    matcher = matcher_of(compiler, grammar)
    for token_id in compiler.vocabulary(text):
        if not allows(matcher, token_id):
            return False
        matcher.accept(token_id)
    return bool(allowed(matcher) & set(compiler.vocabulary.end_ids))


def random_text(compiler: GrammarCompiler, grammar: Grammar, rng: random.Random, max_tokens: int) -> str | None:
    """Follow tokens chosen at random to an end, for which some bias helps; None if it takes too long."""
    matcher = matcher_of(compiler, grammar)
    text, closing_ids = b"", _closing_ids(compiler)
    for _ in range(max_tokens):
        ids = allowed(matcher)
        assert ids, "nothing may follow"
        if not ids.isdisjoint(compiler.vocabulary.end_ids) and rng.random() < 0.3:
            return text.decode()
        closing = ids & closing_ids
        token_id = rng.choice(sorted(closing if closing and rng.random() < 0.3 else ids))
        if token_id in compiler.vocabulary.end_ids:
            return text.decode()
        matcher.accept(token_id)
        text += compiler.vocabulary.tokens[token_id]
        if matcher.is_finished:
            return text.decode()
    return None


@cache
def _closing_ids(compiler: GrammarCompiler) -> frozenset[int]:
    """Return the tokens that begin with what ends a value."""
    tokens = compiler.vocabulary.tokens
    return frozenset(i for i, token in enumerate(tokens) if token[:1] in (b'"', b"}", b"]", b","))


def thinking(end: str, start: int | None = None) -> Thinking:
    return Thinking(end=tuple(end.encode()), start=start)
