"""Incremental text: equal to the whole decode however the tokens arrive."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from orcinus.engine.text.detokenizer import Detokenizer, WindowDetokenizer, make_detokenizer
from orcinus.engine.text.tokenizer import Tokenizer
from tests.growth import assert_linear
from tests.unit.engine.fakes import byte_characters
from tests.unit.engine.text.cutting import cut, cuts, quick
from tests.unit.engine.text.test_tokenizer import SENTENCEPIECE_VOCAB, write_sentencepiece_tokenizer

PIECES = ["ab", " the", "é", "你", "好", "🐋", "👨‍👩‍👧", "\n\n", "�", "e\u0301"]


def byte_level_tokenizer() -> Tokenizer:
    """Single bytes, pieces that cut code points anywhere, whole words, special and plain added tokens."""
    characters = byte_characters()
    whole = [piece.encode() for piece in PIECES]
    cuts = {
        piece[start:end] for piece in whole for start in range(len(piece)) for end in range(start + 2, len(piece) + 1)
    }
    tokens = [bytes([byte]) for byte in range(256)] + sorted(cuts)
    vocab = {"".join(characters[byte] for byte in token): i for i, token in enumerate(tokens)}
    tokenizer = FastTokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", AddedToken("<|é|>", special=True), AddedToken("<日本>", special=True)])
    tokenizer.add_tokens(["<tool call>", "日本語", "plain"])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
        return Tokenizer.load(name)


def sentencepiece_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as name:
        return Tokenizer.load(str(write_sentencepiece_tokenizer(Path(name))))


BYTE_LEVEL = byte_level_tokenizer()
SENTENCEPIECE = sentencepiece_tokenizer()
PROMPT = [SENTENCEPIECE_VOCAB.index(("▁Hello", -1.0))]
FIRST_BYTE = 2  # the id of <0x00>


def stream(detokenizer: Detokenizer, token_ids: Sequence[int], cuts: Sequence[int]) -> str:
    pieces = [detokenizer.feed(chunk) for chunk in cut(token_ids, cuts)]
    return "".join(pieces) + detokenizer.flush()


@quick
@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size + 2), max_size=40), cuts, st.booleans())
def test_byte_level_deltas_join_to_the_whole_decode(token_ids: list[int], at: list[int], skip: bool) -> None:
    detokenizer = make_detokenizer(BYTE_LEVEL, [65], skip_special_tokens=skip)
    assert stream(detokenizer, token_ids, at) == BYTE_LEVEL.decode(token_ids, skip_special_tokens=skip)


@quick
@given(st.text(max_size=30), cuts)
def test_byte_level_deltas_are_whole_code_points(text: str, at: list[int]) -> None:
    token_ids = list(text.encode())
    detokenizer = make_detokenizer(BYTE_LEVEL, [65], skip_special_tokens=True)
    pieces = [detokenizer.feed(chunk) for chunk in cut(token_ids, at)]
    assert "".join(pieces) == text
    assert detokenizer.flush() == ""


def byte_tokens(data: bytes) -> list[int]:
    return [FIRST_BYTE + byte for byte in data]


texts_and_bytes = st.lists(
    st.one_of(
        st.integers(0, SENTENCEPIECE.vocab_size + 2)
        .filter(lambda i: not FIRST_BYTE <= i < FIRST_BYTE + 256)
        .map(lambda i: [i]),
        st.text(min_size=1, max_size=3).map(lambda text: byte_tokens(text.encode())),
    ),
    max_size=12,
).map(lambda groups: [token_id for group in groups for token_id in group])


@quick
@given(texts_and_bytes, cuts, st.booleans())
def test_sentencepiece_deltas_join_to_what_the_output_adds_to_its_prompt(
    token_ids: list[int], at: list[int], skip: bool
) -> None:
    whole = SENTENCEPIECE.decode(PROMPT + token_ids, skip_special_tokens=skip)
    detokenizer = make_detokenizer(SENTENCEPIECE, PROMPT, skip_special_tokens=skip)
    assert SENTENCEPIECE.decode(PROMPT) + stream(detokenizer, token_ids, at) == whole


@quick
@given(st.lists(st.integers(0x80, 0xBF), min_size=1, max_size=6), st.binary(max_size=6))
def test_sentencepiece_run_that_begins_with_invalid_bytes_is_replaced_byte_by_byte(
    first: list[int], rest: bytes
) -> None:
    token_ids = byte_tokens(bytes(first) + rest)
    detokenizer = make_detokenizer(SENTENCEPIECE, PROMPT, skip_special_tokens=True)
    whole = SENTENCEPIECE.decode(PROMPT + token_ids)
    assert SENTENCEPIECE.decode(PROMPT) + stream(detokenizer, token_ids, []) == whole


@quick
@given(st.lists(st.integers(0, SENTENCEPIECE.vocab_size + 2), max_size=40), cuts)
def test_sentencepiece_text_does_not_depend_on_how_the_tokens_arrive(token_ids: list[int], at: list[int]) -> None:
    def run(where: list[int]) -> str:
        return stream(make_detokenizer(SENTENCEPIECE, PROMPT, skip_special_tokens=True), token_ids, where)

    assert run(at) == run([]) == run(list(range(len(token_ids))))


def test_sentencepiece_output_keeps_the_space_after_its_prompt() -> None:
    detokenizer = make_detokenizer(SENTENCEPIECE, PROMPT, skip_special_tokens=True)
    assert detokenizer.feed(PROMPT) == " Hello"


@quick
@given(st.text(alphabet="ab é你🐋", max_size=20), cuts)
def test_any_other_tokenizer_gives_its_whole_decode(text: str, at: list[int]) -> None:
    for tokenizer, prompt in ((BYTE_LEVEL, [65]), (SENTENCEPIECE, PROMPT)):
        token_ids = tokenizer.encode(text)
        whole = tokenizer.decode([*prompt, *token_ids])
        detokenizer = WindowDetokenizer(tokenizer, prompt, True)
        assert tokenizer.decode(prompt) + stream(detokenizer, token_ids, at) == whole


@pytest.mark.parametrize("make", [make_detokenizer, None])
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE])
def test_invalid_bytes_do_not_block_the_stream(tokenizer: Tokenizer, make: Any) -> None:
    invalid = 0xFF if tokenizer is BYTE_LEVEL else FIRST_BYTE + 0xFF
    detokenizer = make(tokenizer, [65], skip_special_tokens=True) if make else WindowDetokenizer(tokenizer, [65], True)
    num_tokens = [len(detokenizer.feed([invalid])) for _ in range(40)]
    assert sum(num_tokens) >= 40 - WindowDetokenizer.max_held_tokens


def test_skipped_tokens_do_not_pile_up() -> None:
    detokenizer = WindowDetokenizer(BYTE_LEVEL, [65], True)
    special = min(BYTE_LEVEL.special_ids)
    assert detokenizer.feed([special] * 100) == ""
    assert len(detokenizer._held) <= WindowDetokenizer.max_held_tokens
    assert detokenizer.feed([97]) == "a"


def test_space_after_many_skipped_tokens_is_kept() -> None:
    detokenizer = WindowDetokenizer(SENTENCEPIECE, PROMPT, True)
    assert detokenizer.feed([min(SENTENCEPIECE.special_ids)] * 20) == ""
    assert detokenizer.feed(PROMPT) == " Hello"


@pytest.mark.parametrize("make", [make_detokenizer, None])
def test_cost_of_a_token_does_not_grow_with_the_text(make: Any) -> None:
    def feed(num_tokens: int) -> None:
        detokenizer = (
            make(BYTE_LEVEL, [65], skip_special_tokens=True) if make else WindowDetokenizer(BYTE_LEVEL, [65], True)
        )
        for _ in range(num_tokens):
            detokenizer.feed([97])

    assert_linear(feed, 20_000)
