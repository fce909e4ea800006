"""GGUF files read without what is in their long arrays."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from orcinus.engine.platform.gguf_reader import read_gguf, read_metadata, vocabularies_left_out


@pytest.fixture
def file(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(2)
    writer.add_token_list([f"token {i}é" for i in range(3000)])
    writer.add_token_types([1] * 3000)
    writer.add_token_scores([0.5] * 3000)
    writer.add_head_count_kv([0, 4])
    writer.add_name("behind the vocabulary")
    writer.add_bool("llama.is_bool", True)
    writer.add_float64("llama.float64", 0.1)
    writer.add_int64("llama.int64", -(2**40))
    for i in range(2):
        writer.add_tensor(f"blk.{i}.attn_q.weight", np.full((3, 32), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def test_fields_and_tensors_are_those_of_gguf(file: Path) -> None:
    lean, usual = read_gguf(file), gguf.GGUFReader(file)
    assert lean.fields.keys() == usual.fields.keys()
    for name in ("general.architecture", "general.name", "llama.block_count", "llama.attention.head_count_kv"):
        assert lean.fields[name].contents() == usual.fields[name].contents()
    assert [tensor.name for tensor in lean.tensors] == [tensor.name for tensor in usual.tensors]
    for mine, theirs in zip(lean.tensors, usual.tensors, strict=True):
        assert np.array_equal(mine.data, theirs.data)


def test_long_arrays_are_empty(file: Path) -> None:
    fields = read_gguf(file).fields
    for name in ("tokens", "token_type", "scores"):
        assert list(fields[f"tokenizer.ggml.{name}"].data) == []
    assert len(fields["llama.attention.head_count_kv"].data) == 2


def test_reader_of_gguf_is_put_back(file: Path) -> None:
    usual = gguf.GGUFReader
    with vocabularies_left_out():
        assert list(gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"].data) == []
    assert gguf.GGUFReader is usual


def test_what_a_file_states_is_what_transformers_reads(file: Path) -> None:
    from transformers.integrations.gguf.reader import read_gguf_metadata

    for kept in ((), ("tokenizer.ggml.tokens",)):
        assert read_metadata(file, kept) == read_gguf_metadata(str(file), kept)
    assert read_metadata(file, ("tokenizer.ggml.tokens",))[0]["tokenizer.ggml.tokens"][7] == "token 7é"


@pytest.mark.parametrize(("first", "message"), [(b"GGML", "begins with b'GGML'"), (b"GGUF\x01", "version 1")])
def test_what_cannot_be_read_is_named(first: bytes, message: str, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(first + content[len(first) :])
    with pytest.raises(ValueError, match=message):
        read_metadata(file)


def test_a_value_of_a_type_that_is_not_known_is_named(file: Path) -> None:
    name = b"general.architecture"
    file.write_bytes(file.read_bytes().replace(name + b"\x08", name + b"\x63"))
    with pytest.raises(ValueError, match="type 99"):
        read_metadata(file)
