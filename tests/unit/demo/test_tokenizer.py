"""The tokenizer: any text comes back as it was, and the chat template renders each role."""

import json
from functools import cache
from random import Random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from demo import corpus
from demo.batches import OTHER_WEIGHT, Encoder, Source, collate
from demo.tokenizer import MARKS, SPECIAL, train_tokenizer

TEXTS = [
    "Hello, world!",
    "  two  spaces and a tab\t and\nnew\n\nlines ",
    "naïve café – “quotes” … ß Ω ж",
    "你好，世界。日本語のテキスト 한국어",
    "🐱👩‍👩‍👧‍👦🏳️‍🌈 é vs e\u0301 \u200b\x00\x7f",
    "12345 + 67 = 12412",
    '<tool_call>\n{"name": "x"}\n</tool_call>',
]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus.sample_texts(Random(1), 300), 700)


def round_trip(text: str) -> str:
    return str(tokenizer().decode(tokenizer()(text, add_special_tokens=False)["input_ids"]))


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_encoding(text: str) -> None:
    assert round_trip(text) == text


def test_random_unicode_survives_encoding() -> None:
    rng = Random(2)
    for _ in range(200):
        points = (
            rng.choice((rng.randrange(0x250), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))
            for _ in range(30)
        )
        text = "".join(chr(point) for point in points)
        assert round_trip(text) == text


def test_digits_are_single_tokens() -> None:
    assert len(tokenizer()("1234567890", add_special_tokens=False)["input_ids"]) == 10


@pytest.mark.parametrize("mark", [*SPECIAL, *MARKS])
def test_marks_are_single_tokens(mark: str) -> None:
    assert len(tokenizer()(mark, add_special_tokens=False)["input_ids"]) == 1


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_each_role_is_rendered(role: str) -> None:
    text = tokenizer().apply_chat_template([{"role": role, "content": "Some words"}], tokenize=False)
    assert text == f"<|im_start|>{role}\nSome words<|im_end|>\n"


def test_generation_prompt_opens_the_assistants_turn() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
def test_tool_calls_are_rendered_from_objects_and_from_text(arguments: object) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages: list[Any] = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    text = tokenizer().apply_chat_template(messages, tokenize=False)
    body = '{"name": "weather", "arguments": {"city": "Paris"}}'
    assert text == f"<|im_start|>assistant\n<tool_call>\n{body}\n</tool_call><|im_end|>\n"


def test_tools_are_listed_in_the_system_turn() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    text = str(tokenizer().apply_chat_template(messages, tools=[tool], tokenize=False))
    assert text.startswith("<|im_start|>system\nBe short.\n\n")
    assert f"<tools>\n{json.dumps(tool)}\n</tools>" in text


def test_content_may_be_parts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages: list[Any] = [{"role": "user", "content": parts}]
    text = tokenizer().apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\none two<|im_end|>\n"


def test_only_the_assistants_words_have_full_weight() -> None:
    example = corpus.single("capital")(Random(3), "train")
    document = Encoder(tokenizer()).chat(example)
    spoken = [token for token, weight in zip(document.ids, document.weights, strict=True) if weight > OTHER_WEIGHT]
    assert tokenizer().decode(spoken) == example.messages[-1]["content"] + "<|im_end|>"


def test_packed_documents_do_not_see_each_other() -> None:
    encoder = Encoder(tokenizer())
    batch = collate([[encoder.prose("one two"), encoder.prose("three")]], 32)
    mask = batch.mask()[0, 0]
    numbers = batch.documents[0]
    first, second = (numbers == 1).nonzero().flatten(), (numbers == 2).nonzero().flatten()
    assert not mask[second][:, first].any()
    assert batch.positions[0, second[0]] == 0


def test_the_stream_of_batches_repeats_for_a_seed() -> None:
    streams = [Source(Encoder(tokenizer()), 4, 2048) for _ in range(2)]
    assert streams[0].short().ids.equal(streams[1].short().ids)
    assert streams[0].long().ids.equal(streams[1].long().ids)
