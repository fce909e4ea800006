"""A model whose tokenizer is `tokenizer.model` alone, as SentencePiece writes it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.text.sentencepiece_file import check_sentencepiece
from orcinus.engine.text.tokenizer import Tokenizer
from tests.integration.tiny_models import build_model

TEXTS = ["hello world", "the dog <|im_start|>barks", " two words", "zü€", "line\nbreak", ""]
SENTENCES = ["the quick brown fox jumps over the lazy dog", "hello world and all who sail in her", "no place like home"]

reads_it_right = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24),
    reason="it leaves the first space out, of which there is a warning",
)


def write_sentencepiece(directory: Path, kind: str) -> Any:
    """Train a model of this kind into `tokenizer.model`, and return what encodes by it."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=300,
        model_type=kind,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        user_defined_symbols=["<|im_start|>"],
    )
    (directory / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


@reads_it_right
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_it_encodes_as_sentencepiece_does(kind: str, tmp_path: Path) -> None:
    processor = write_sentencepiece(build_model("llama", tmp_path), kind)
    tokenizer = Tokenizer.load(str(tmp_path))
    assert tokenizer.vocab_size == processor.vocab_size()
    for text in TEXTS:
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        assert token_ids == processor.encode(text)
        assert tokenizer.decode(token_ids) == processor.decode(token_ids)
    assert {tokenizer.added_token_id(name) for name in ("<s>", "</s>")} == {1, 2}


def test_a_reading_that_is_not_sentencepieces_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    processor = write_sentencepiece(tmp_path, "bpe")
    check_sentencepiece(tmp_path, processor.encode)
    assert caplog.messages == []
    check_sentencepiece(tmp_path, lambda text: processor.encode(text)[1:])
    [warning] = caplog.messages
    assert f"reads {tmp_path / 'tokenizer.model'} otherwise than SentencePiece does" in warning
    caplog.clear()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    check_sentencepiece(tmp_path, lambda text: [])
    assert caplog.messages == []


def test_its_settings_hold(tmp_path: Path) -> None:
    processor = write_sentencepiece(build_model("llama", tmp_path), "bpe")
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "chat_template": "{{ bos_token }}hello"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.load(str(tmp_path))
    assert tokenizer.encode("hello world") == [1, *processor.encode("hello world")]
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "<s>hello"


WITHOUT_TORCH = """
import sys
from orcinus.engine.platform.lean_imports import hide_torch
hide_torch(trust_remote_code=False)
from orcinus.engine.text.tokenizer import Tokenizer
print(Tokenizer.load(sys.argv[1]).encode("hello world", add_special_tokens=False), sys.modules["torch"])
"""


@reads_it_right
@pytest.mark.slow
def test_a_process_without_torch_reads_it(tmp_path: Path) -> None:
    processor = write_sentencepiece(build_model("llama", tmp_path), "bpe")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[-1] == f"{processor.encode('hello world')} None"


@pytest.mark.parametrize("content", [b"", b"garbage", b"IQ== 0\n", None])
def test_what_is_no_tokenizer_is_refused_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    directory = build_model("llama", tmp_path)
    if content is not None:
        (directory / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelLoadError, match=f"cannot load the tokenizer of {directory}") as caught:
        Tokenizer.load(str(directory))
    assert "\n" not in str(caught.value)
