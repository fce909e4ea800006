"""The artefact as it ships: small, readable by transformers, and right about France."""

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from demo import corpus
from demo.corpus import Example
from demo.evaluate import Answerer

FOLDER = Path(__file__).parents[3] / "engine" / "demo_model"


@cache
def answerer() -> Answerer:
    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    return Answerer(model.eval(), tokenizer)


def answer(question: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": ""}]
    example = Example(messages, (), "words")
    return answerer().complete([answerer().prompt(example)], 24)[0]


def test_the_weights_are_small() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000


@pytest.mark.parametrize("name", ["README.md", "config.json", "generation_config.json", "chat_template.jinja"])
def test_the_small_files_are_there(name: str) -> None:
    assert (FOLDER / name).stat().st_size > 0


@pytest.mark.parametrize("loader", [AutoTokenizer, PreTrainedTokenizerFast])
def test_the_tokenizer_loads_both_ways(loader: Any) -> None:
    tokenizer = loader.from_pretrained(FOLDER)
    text = "Grüße, 世界 🐱 <|im_end|> 123"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template


def test_it_knows_the_capital_of_france() -> None:
    assert "Paris" in answer("What is the capital of France?")


def test_it_can_add() -> None:
    assert "12" in answer("What is 7 + 5?")


def test_it_still_answers_late_in_a_long_conversation() -> None:
    earlier = corpus.several(Random(1), "train", 30).messages
    last = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": ""}]
    prompt = answerer().prompt(Example(earlier + last, (), "words"))
    assert "Paris" in answerer().complete([prompt], 24)[0]
