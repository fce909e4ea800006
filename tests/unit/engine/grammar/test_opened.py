"""Grammars that count after an opening: free text is free, and what is opened is held to its end."""

import random
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.gate import Trial
from orcinus.engine.grammar.masks import tokens_in
from orcinus.engine.grammar.matcher import GrammarMatcher
from orcinus.engine.grammar.trial_process import find_fault
from orcinus.engine.sampling_params import Grammar, Opening, Openings, Thinking
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.grammar.grammars import DEMO_ENDS, DEMO_VOCAB_SIZE
from tests.unit.server.reading.tools.walking import write_tokenizer

SOURCE = 'start: "<call>" "f(" /[0-9]{1,3}/ ")"\n'
TAG = Opening(("<call>",), ("<call>",))
PLAIN = Opening(("%call%",), ("<call>",))  # of which no token has the end and more
MORE = ["ll>f(", "ll>f(1", "ll>g(", "<call>f", "<call>x", ")!", "<mark>"]  # tokens after the demo model's own


class Model:
    def __init__(self, directory: Path) -> None:
        self.tokenizer = Tokenizer.load(str(write_tokenizer(directory, ["<think>", "</think>"], MORE)))
        self.compiler = GrammarCompiler(lambda: self.tokenizer, self.tokenizer.vocab_size, DEMO_ENDS)
        self.all = {*range(self.tokenizer.vocab_size)}

    def matcher(self, *openings: Opening, source: str = SOURCE, fields: Any = None, **options: Any) -> GrammarMatcher:
        given = Openings(openings or (TAG,), **(fields or {}))
        return self.compiler.compile("grammar", source, given).matcher(options.pop("thinking", None), **options)

    def token(self, text: str) -> int:
        found = self.tokenizer.added_token_id(text)
        return self.compiler.vocabulary.ll_tokenizer.greedy_tokenize(text)[0] if found is None else found

    def may_come(self, matcher: GrammarMatcher) -> set[int]:
        matcher.fill_mask()
        assert matcher.error is None, matcher.error
        return self.all if matcher.mask is None else {int(i) for i in tokens_in(matcher.mask)} & self.all

    def ruled_out(self, matcher: GrammarMatcher) -> set[str]:
        return {self.tokenizer.token_bytes(i).decode(errors="replace") for i in self.all - self.may_come(matcher)}

    def write(self, matcher: GrammarMatcher, text: str) -> None:
        """Write a text byte by byte."""
        for byte in text.encode():
            token_id = next(i for i, own in enumerate(self.compiler.vocabulary.tokens) if own == bytes([byte]))
            assert token_id in self.may_come(matcher), (text, chr(byte))
            matcher.accept(token_id)
            assert matcher.error is None, matcher.error


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


def test_free_text_has_no_mask_and_takes_every_token(model: Model) -> None:
    rng = random.Random(0)
    matcher = model.matcher(PLAIN)
    free = [i for i in range(model.tokenizer.vocab_size) if b"%" not in model.tokenizer.token_bytes(i)]
    for _ in range(200):
        matcher.accept(rng.choice([*free, *DEMO_ENDS]))
        matcher.fill_mask()
        assert matcher.mask is None
        assert not matcher.is_finished
        assert matcher.error is None


def test_after_an_opening_the_grammar_counts_to_its_end_and_text_follows(model: Model) -> None:
    matcher = model.matcher(PLAIN)
    for _ in range(3):
        model.write(matcher, "Hello %cal %call%")
        assert model.may_come(matcher).isdisjoint({model.token("g"), *DEMO_ENDS})
        model.write(matcher, "f(12)")
        matcher.fill_mask()
        assert matcher.mask is None
        assert not matcher.is_finished


def test_tokens_that_go_on_with_what_the_grammar_does_not_begin_with_are_ruled_out(model: Model) -> None:
    matcher = model.matcher()
    assert model.ruled_out(matcher) == {"<call>x"}
    model.write(matcher, "a <ca")
    assert model.ruled_out(matcher) == {"<call>x", "ll>g("}


@pytest.mark.parametrize(("before", "token", "after"), [("<ca", "ll>f(1", "2)"), ("", "<call>f", "(7)")])
def test_a_token_may_have_the_end_of_an_opening_and_what_follows(
    model: Model, before: str, token: str, after: str
) -> None:
    matcher = model.matcher()
    model.write(matcher, before)
    matcher.accept(model.token(token))
    assert model.token("x") not in model.may_come(matcher)
    model.write(matcher, after)
    matcher.fill_mask()
    assert matcher.error is None
    assert not matcher.is_finished
    assert model.ruled_out(matcher) == {"<call>x"}


def test_an_opening_may_stand_for_another_text(model: Model) -> None:
    matcher = model.matcher(Opening(("call", ":"), ("<call>f(",), between=" \n"))
    model.write(matcher, "call \n:5)call:6)")
    assert matcher.error is None


def test_an_opening_may_stand_for_a_token(model: Model) -> None:
    mark = model.token("<mark>")
    source = f'start: <[{mark}]> "f(" /[0-9]{{1,3}}/ ")"\n'
    for writes in (lambda matcher: matcher.accept(mark), lambda matcher: model.write(matcher, "<mark>")):
        matcher = model.matcher(Opening(("<mark>",), (mark,)), source=source)
        writes(matcher)
        assert model.token("g") not in model.may_come(matcher)
        model.write(matcher, "f(1)")


def test_where_nothing_follows_the_text_ends_with_the_grammar(model: Model) -> None:
    matcher = model.matcher(fields={"text_follows": False})
    model.write(matcher, "Hello <call>f(123")
    assert not matcher.is_finished
    matcher.accept(model.token(")"))
    assert matcher.is_finished


def test_one_opening_may_be_all(model: Model) -> None:
    matcher = model.matcher(fields={"is_single": True})
    model.write(matcher, "<call>f(1) <ca")
    assert {"ll>f(", "ll>f(1", "ll>g(", "<call>f", "<call>x"} == model.ruled_out(matcher)
    model.write(matcher, "ll")
    assert ">" in model.ruled_out(matcher)
    assert model.token("a") in model.may_come(matcher)


def test_special_tokens_are_no_text_but_for_markers(model: Model) -> None:
    special = model.tokenizer.added_token_id("<think>")
    assert special is not None
    opening, other = Opening(("<think>",), ("<call>",)), model.token("x")
    matcher = model.matcher(opening)
    matcher.accept(special)
    assert other in model.may_come(matcher)
    matcher = model.matcher(opening, fields={"markers": ("<think>",)})
    matcher.accept(special)
    assert other not in model.may_come(matcher)
    matcher = model.matcher()
    model.write(matcher, "<ca")
    matcher.accept(special)  # which the reader leaves out
    model.write(matcher, "ll>")
    assert other not in model.may_come(matcher)


def test_openings_in_thoughts_do_not_count_and_thoughts_may_end_the_text(model: Model) -> None:
    start, end = (model.tokenizer.added_token_id(text) for text in ("<think>", "</think>"))
    assert start is not None
    assert end is not None
    for thinking, before in ((Thinking((end,), start), [start]), (Thinking((end,)), [])):
        matcher = model.matcher(thinking=thinking)
        for token_id in before:
            assert token_id in model.may_come(matcher)
            matcher.accept(token_id)
        model.write(matcher, "<call>x")
        matcher.fill_mask()
        assert matcher.mask is None
        matcher.accept(end)
        model.write(matcher, "<call>")
        assert model.token("x") not in model.may_come(matcher)
    matcher = model.matcher(thinking=Thinking((end,), start))
    matcher.accept(model.token("a"))
    matcher.accept(start)  # too late for a thought
    model.write(matcher, "<call>")
    assert model.token("x") not in model.may_come(matcher)


@pytest.mark.parametrize("max_tokens", [6, 12, 14, 20, 40])
def test_what_was_opened_ends_within_the_limit_and_nothing_is_opened_that_could_not(
    model: Model, max_tokens: int
) -> None:
    source = 'start: "<call>" "f(" /[0-9]*/ ")"\n'
    for seed in range(6):
        rng = random.Random(seed)
        matcher, text = model.matcher(source=source, max_tokens=max_tokens), b""
        for _ in range(max_tokens):
            allowed = model.may_come(matcher)
            wanted = b"<call>"[text.count(b"<call>") and len(text) % 6 :][:1]
            tokens = [
                i for i in sorted(allowed) if model.compiler.vocabulary.tokens[i] == wanted or rng.random() < 0.02
            ]
            begun = [i for i in sorted(allowed) if b"<call>" in text + model.compiler.vocabulary.tokens[i]]
            drawn = rng.choice(begun if begun and rng.random() < 0.3 else tokens or sorted(allowed))
            token_id = matcher.replacement_for(drawn)
            matcher.accept(token_id)
            assert matcher.error is None
            if token_id in DEMO_ENDS:
                assert drawn == token_id or matcher.is_steered
                break
            text += model.compiler.vocabulary.tokens[token_id]
            if matcher.is_finished:
                break
        for call in text.split(b"<call>")[1:]:
            assert call.startswith(b"f("), text
            assert b")" in call, text


def test_a_matcher_that_takes_in_the_tokens_again_is_where_the_first_one_was(model: Model) -> None:
    compiled = model.compiler.compile("grammar", 'start: "<call>" "f(" /[0-9]*/ ")"\n', Openings((TAG,)))
    matcher = compiled.matcher(max_tokens=40)
    taken: list[int] = []
    rng = random.Random(3)
    opened = model.compiler.vocabulary("a <call>f(")
    digits = {model.token(digit) for digit in "0123456789"}
    for step in range(40):
        twin = compiled.matcher(max_tokens=40, tokens=taken)
        assert model.may_come(twin) == model.may_come(matcher)
        assert twin.is_steered == matcher.is_steered
        drawn = opened[step] if step < len(opened) else rng.choice(sorted(model.may_come(matcher) & digits))
        token_id = matcher.replacement_for(drawn)
        assert twin.replacement_for(drawn) == token_id
        if matcher.is_steered:
            break
        matcher.accept(token_id)
        taken.append(token_id)
    assert matcher.is_steered
    assert b")" in b"".join(model.compiler.vocabulary.tokens[i] for i in taken)


def test_the_trial_walks_after_the_openings() -> None:
    compiler = GrammarCompiler(
        lambda: Tokenizer.load(str(Path(__file__).parents[4] / "engine" / "demo_model")), DEMO_VOCAB_SIZE, DEMO_ENDS
    )
    bomb = 'start: "<call>" /x(a{1000}){1000}/\n'
    assert find_fault(compiler, Trial("grammar", SOURCE, Openings((TAG,)))) is None
    assert find_fault(compiler, Trial("grammar", bomb, Openings((TAG,)))) is not None
    elsewhere = Openings((Opening(("<call>",), ("<other>",)),))
    assert "no text" in (find_fault(compiler, Trial("grammar", SOURCE, elsewhere)) or "")
    with pytest.raises(InvalidRequestError):
        compiler.compile("grammar", SOURCE, elsewhere)


def test_one_source_with_and_without_openings_is_two_grammars(model: Model) -> None:
    prepared = [model.compiler.prepare(Grammar("grammar", SOURCE, openings=of)) for of in (None, Openings((TAG,)))]
    first, second = (future.result().matcher() for future in prepared)
    first.fill_mask()
    second.fill_mask()
    assert first.mask is not None
    assert model.token("a") not in model.may_come(first)
    assert model.token("a") in model.may_come(second)
