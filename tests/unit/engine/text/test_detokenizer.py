"""Incremental text: equal to the whole decode however the tokens arrive, and never a part of a stop string."""

import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from orcinus.engine.text.detokenizer import Detokenizer, StopScanner, WindowDetokenizer, make_detokenizer
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.fakes import byte_characters
from tests.unit.engine.text.test_tokenizer import SENTENCEPIECE_VOCAB, write_sentencepiece_tokenizer

quick = settings(deadline=None, max_examples=200)

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


def cut(values: Sequence[Any], cuts: Sequence[int]) -> list[Sequence[Any]]:
    bounds = sorted({0, len(values), *(c % (len(values) + 1) for c in cuts)})
    return [values[a:b] for a, b in pairwise(bounds)]


def stream(detokenizer: Detokenizer, token_ids: Sequence[int], cuts: Sequence[int]) -> str:
    pieces = [detokenizer.feed(chunk) for chunk in cut(token_ids, cuts)]
    return "".join(pieces) + detokenizer.flush()


cuts = st.lists(st.integers(0, 1000), max_size=8)


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


def seconds_per_token(detokenizer: Detokenizer, num_tokens: int) -> float:
    started = time.perf_counter()
    for _ in range(num_tokens):
        detokenizer.feed([97])
    return (time.perf_counter() - started) / num_tokens


@pytest.mark.parametrize("make", [make_detokenizer, None])
def test_cost_of_a_token_does_not_grow_with_the_text(make: Any) -> None:
    detokenizer = (
        make(BYTE_LEVEL, [65], skip_special_tokens=True) if make else WindowDetokenizer(BYTE_LEVEL, [65], True)
    )
    early = min(seconds_per_token(detokenizer, 100) for _ in range(5))
    seconds_per_token(detokenizer, 20_000)
    late = min(seconds_per_token(detokenizer, 100) for _ in range(5))
    assert late < 20 * early


# --- stop strings ---------------------------------------------------------------------------------------


def scan(stops: Sequence[str], pieces: Sequence[str], *, include: bool = False) -> tuple[list[str], str | None]:
    """All that was given out, piece by piece, and the stop string found."""
    scanner = StopScanner(stops, include_stop=include)
    given_out = []
    for piece in pieces:
        scanned = scanner.feed(piece)
        given_out.append(scanned.text)
        if scanned.stop is not None:
            return given_out, scanned.stop
    return [*given_out, scanner.flush()], None


def expected(stops: Sequence[str], text: str, *, include: bool = False) -> tuple[str, str | None]:
    """The definition: the stop string that is completed first, the longest of those completed together."""
    for end in range(1, len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            stop = max(completed, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


stop_strings = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), min_size=1, max_size=4, unique=True)


@quick
@given(stop_strings, st.text(alphabet="ab\n🐋", max_size=30), cuts, st.booleans())
def test_stop_string_is_found_wherever_the_text_is_cut(
    stops: list[str], text: str, at: list[int], include: bool
) -> None:
    pieces = [str(piece) for piece in cut(text, at)]
    given_out, stop = scan(stops, pieces, include=include)
    assert ("".join(given_out), stop) == expected(stops, text, include=include)


@quick
@given(stop_strings, st.text(alphabet="ab\n", max_size=20))
def test_no_part_of_a_stop_string_is_ever_given_out_and_nothing_else_is_held_back(stops: list[str], text: str) -> None:
    scanner = StopScanner(stops, include_stop=False)
    given_out = ""
    for end, character in enumerate(text, start=1):
        scanned = scanner.feed(character)
        given_out += scanned.text
        if scanned.stop is not None:
            return
        held = text[len(given_out) : end]
        longest = max(
            (n for stop in stops for n in range(len(stop)) if text[:end].endswith(stop[:n])),
            default=0,
        )
        assert len(held) == longest


@quick
@given(stop_strings, st.text(alphabet="ab\n", max_size=20), st.integers(0, 20))
def test_stop_string_completed_while_unarmed_is_text(stops: list[str], text: str, num_unarmed: int) -> None:
    scanner = StopScanner(stops, include_stop=False)
    given_out, found = "", None
    for position, character in enumerate(text):
        scanned = scanner.feed(character, is_armed=position >= num_unarmed)
        given_out += scanned.text
        if scanned.stop is not None:
            found = position
            break
    ends = [end for end in range(num_unarmed, len(text)) if any(text[: end + 1].endswith(stop) for stop in stops)]
    assert found == (ends[0] if ends else None)
    if found is None:
        assert given_out + scanner.flush() == text
    else:
        assert text.startswith(given_out)


def test_text_that_cannot_become_a_stop_string_flows_at_once() -> None:
    given_out, stop = scan(["STOP"], ["a S", "T", "x", "S", "TOP", "never"])
    assert given_out == ["a ", "", "STx", "", ""]
    assert stop == "STOP"


def test_of_stop_strings_completed_together_the_one_that_begins_first_counts() -> None:
    assert scan(["b", "ab"], ["xab"]) == (["x"], "ab")


def test_long_stop_string_against_its_own_near_misses_stays_fast() -> None:
    scanner = StopScanner(["a" * 1023 + "b"] * 4, include_stop=False)
    started = time.perf_counter()
    for _ in range(2000):
        scanner.feed("aaaa")
    assert time.perf_counter() - started < 2
