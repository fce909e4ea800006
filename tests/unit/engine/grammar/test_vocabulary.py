"""A model's tokens as grammars see them: which bytes each has, and which tokens a text is written in."""

import json
from pathlib import Path

import pytest

from orcinus.engine.grammar.compiler import GrammarCompiler
from orcinus.engine.grammar.vocabulary import Vocabulary
from orcinus.engine.sampling_params import Grammar
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.grammar.grammars import DEMO_MODEL, accepts, demo_compiler
from tests.unit.engine.text.test_tokenizer import write_sentencepiece_tokenizer


@pytest.fixture(scope="module")
def demo() -> GrammarCompiler:
    return demo_compiler()


def test_bytes_that_have_a_token_of_their_own_are_written_with_that(tmp_path: Path) -> None:
    """`<0x61>` is an 'a' that no model writes."""
    tokenizer = Tokenizer.load(str(write_sentencepiece_tokenizer(tmp_path)))
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size, [])
    fallback = [i for i in range(tokenizer.vocab_size) if tokenizer.fallback_byte(i) is not None]
    written = {vocabulary.tokens[i] for i in range(tokenizer.vocab_size) if i not in fallback}
    assert fallback
    assert not written & {vocabulary.tokens[i] for i in fallback if vocabulary.tokens[i]}
    compiler = GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size, [])
    text = tokenizer.decode(tokenizer.encode("é"))
    assert accepts(compiler, Grammar("choice", json.dumps([text])), text)


def test_text_becomes_the_tokens_that_the_model_would_write(demo: GrammarCompiler) -> None:
    tokenizer = Tokenizer.load(str(DEMO_MODEL))
    text = 'The capital of {"a": é}'
    assert demo.vocabulary(text.encode()) == tokenizer.encode(text, add_special_tokens=False)
    special = tokenizer.decode([2], skip_special_tokens=False)
    tokens = demo.vocabulary(special.encode())
    assert not set(tokens) & tokenizer.special_ids
    assert b"".join(demo.vocabulary.tokens[i] for i in tokens) == special.encode()
