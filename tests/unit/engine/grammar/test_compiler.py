"""Grammars are compiled in threads, once while they are in use, and kept by whoever needs them."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.errors import InvalidRequestError, ModelLoadError
from orcinus.engine.grammar import closing
from orcinus.engine.grammar import compiler as compiler_module
from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.platform.priority import LOW_PRIORITY
from orcinus.engine.sampling_params import Grammar
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.fakes import END_OF_TEXT, VOCAB_SIZE, write_byte_tokenizer
from tests.unit.engine.grammar.grammars import allowed, thinking


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(str(write_byte_tokenizer(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: tokenizer, VOCAB_SIZE, [END_OF_TEXT])


def regex(pattern: str, **fields: Any) -> Grammar:
    return Grammar("regex", pattern, **fields)


def test_a_grammar_is_compiled_once_whoever_asks_and_however_it_is_thought_about(compiler: GrammarCompiler) -> None:
    first = compiler.prepare(regex("[a-z]{3}"))
    assert compiler.prepare(regex("[a-z]{3}", thinking=thinking("!"))) is first
    first.result()
    assert compiler.prepare(regex("[a-z]{3}")) is first
    assert compiler.prepare(regex("[a-z]{4}")) is not first


@pytest.mark.parametrize("limits", [(24,), (None, 24), (500, 24), (24, 500)])
def test_no_step_searches_for_an_end_that_is_too_far(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, limits: tuple[int | None, ...]
) -> None:
    """A way of 40 tokens is the shortest: for a lower limit there are others to be tried, by the compiler's threads."""
    futures = [compiler.prepare(regex("[a-z ]{40}"), limit) for limit in limits]
    compiled = [future.result() for future in futures]
    monkeypatch.setattr(closing, "_PathSearch", None)
    for grammar, limit in zip(compiled, limits, strict=True):
        matcher = grammar.matcher(max_tokens=limit)
        matcher.fill_mask()
        assert matcher.error is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority is the whole process's")
def test_grammars_are_compiled_with_less_priority_than_steps_have(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    priorities = []
    monkeypatch.setattr(compiler, "compile", lambda *_: priorities.append(os.getpriority(os.PRIO_PROCESS, 0)))
    compiler.prepare(regex("a")).exception()
    assert priorities == [LOW_PRIORITY]
    assert os.getpriority(os.PRIO_PROCESS, 0) < LOW_PRIORITY


def test_the_grammar_that_was_asked_for_longest_ago_is_forgotten(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_module, "_MAX_KEPT", 2)
    first, second = compiler.prepare(regex("a")), compiler.prepare(regex("b"))
    assert compiler.prepare(regex("a")) is first
    compiler.prepare(regex("c"))
    assert compiler.prepare(regex("a")) is first
    assert compiler.prepare(regex("b")) is not second


def test_a_grammar_that_is_forgotten_serves_those_who_have_it(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_module, "_MAX_KEPT", 2)
    futures = [compiler.prepare(regex(letter)) for letter in "abcde"]
    compiled = [future.result() for future in futures]
    monkeypatch.setattr(GrammarCompiler, "compile", lambda *args: pytest.fail("it is compiled already"))
    assert [allowed(grammar.matcher()) for grammar in compiled] == [{ord(letter)} for letter in "abcde"]


def test_matchers_of_one_compiled_grammar_go_their_own_ways(compiler: GrammarCompiler) -> None:
    compiled = compiler.prepare(regex("ab")).result()
    first, second = compiled.matcher(), compiled.matcher()
    first.accept(ord("a"))
    assert (allowed(first), allowed(second)) == ({ord("b")}, {ord("a")})
    assert allowed(compiled.matcher(tokens=b"a")) == {ord("b")}


def test_a_grammar_that_fails_to_compile_is_tried_again(compiler: GrammarCompiler) -> None:
    first = compiler.prepare(regex("[a"))
    assert isinstance(first.exception(), InvalidRequestError)
    second = compiler.prepare(regex("[a"))
    assert second is not first
    assert isinstance(second.exception(), InvalidRequestError)


def test_a_refusal_shows_the_grammar_that_a_client_sent_and_not_one_that_was_made_of_a_regex(
    compiler: GrammarCompiler,
) -> None:
    with pytest.raises(InvalidRequestError, match=r"1 \| start: foo"):
        compiler.compile("grammar", "start: foo")
    with pytest.raises(InvalidRequestError, match=r"look-around") as caught:
        compiler.compile("regex", "(?=a)b")
    assert "1 |" not in str(caught.value)


def test_tokens_that_cannot_be_followed_again_fail_their_matcher_and_nothing_else(
    compiler: GrammarCompiler, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = compiler.prepare(regex("ab")).result()
    assert compiled.matcher(tokens=b"b").error is not None
    broken = compiled.matcher(tokens=[2**70])  # llguidance's own exception, for a token that none can be
    assert broken.error == "the grammar cannot be followed: OverflowError"
    assert "following a request's tokens failed" in caplog.text


def test_a_matcher_whose_library_raises_in_the_middle_of_a_step_fails_alone(compiler: GrammarCompiler) -> None:
    compiled = compiler.prepare(regex("[ab]{9}")).result()
    by_accept = compiled.matcher()
    by_accept.accept(2**70)
    assert by_accept.error == "the grammar cannot be followed: OverflowError"
    by_replacement = compiled.matcher(max_tokens=9)
    by_replacement.fill_mask()
    assert by_replacement.replacement_for(2**70) == 2**70
    assert (by_replacement.error or "").startswith("the grammar cannot be followed: ")
    assert compiled.matcher(max_tokens=9, tokens=b"ab").error is None


def test_a_tokenizer_that_cannot_be_loaded_fails_the_preparation(tmp_path: Path) -> None:
    compiler = GrammarCompiler(lambda: Tokenizer.load(str(tmp_path / "nowhere")), VOCAB_SIZE, [END_OF_TEXT])
    assert isinstance(compiler.prepare(regex("a")).exception(), ModelLoadError)
