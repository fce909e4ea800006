"""Writes a model in transformers' format as a GGUF file, so that servers of such files can be compared on one.

    python -m bench.gguf_model DIRECTORY FILE --type Q4_0

Of types with fewer than 8 bits the embedding, which is the head too, has 6 (Q6_K), as in files that people share. Rows
that are not whole blocks of 256 have 5 bits in blocks of 32 (Q5_0) in place of Q4_K. Two types that the `gguf` package
reads alone are written here in a plain way (the smallest scale that reaches all values, no search): enough to measure
speed, less exact than what llama.cpp writes. Llama's and Qwen3's layers are known.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

TYPES = ("BF16", "Q8_0", "Q4_0", "Q4_K")
_ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3"}
_EMBEDDING_TYPES = {"Q4_0": "Q6_K", "Q4_K": "Q6_K"}
_SUPER_BLOCK = 256
_ROWS_AT_ONCE = 4096
_NORMAL, _CONTROL = 1, 3  # llama.cpp's types of tokens


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gguf_model", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--type", choices=TYPES, default="Q4_0")
    options = parser.parse_args()
    write_gguf(options.directory, options.file, options.type)
    return 0


def write_gguf(directory: Path, file: Path, type_name: str) -> None:
    """Write the file whole or not at all. Raises `ValueError` for an architecture that is not known here."""
    from gguf import GGUFWriter

    config = json.loads((directory / "config.json").read_text())
    if config["model_type"] not in _ARCHITECTURES:
        raise ValueError(f"{config['model_type']} cannot be written; there are {', '.join(_ARCHITECTURES)}")
    partial = file.with_suffix(".partial")
    writer = GGUFWriter(partial, _ARCHITECTURES[config["model_type"]], use_temp_file=True)
    _add_numbers(writer, config)
    _add_tokenizer(writer, directory, config["vocab_size"])
    for name, weight in _named_weights(directory, config):
        kind = _type_of(name, weight.shape, type_name)
        writer.add_tensor(name, quantized(weight, kind), raw_dtype=_gguf_type(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(file)


def quantized(weight: Floats, type_name: str) -> NDArray[Any]:
    """Return (..., columns) in the blocks of a type, some rows at a time."""
    if type_name == "F32":
        return weight
    parts = [
        _quantized_rows(weight[row : row + _ROWS_AT_ONCE], type_name) for row in range(0, len(weight), _ROWS_AT_ONCE)
    ]
    return np.concatenate(parts)


def _quantized_rows(rows: Floats, type_name: str) -> NDArray[Any]:
    if type_name not in _OWN:
        from gguf import quantize

        result: NDArray[Any] = quantize(rows, _gguf_type(type_name))
        return result
    return _OWN[type_name](rows.reshape(-1, _SUPER_BLOCK)).reshape(len(rows), -1)


def _gguf_type(name: str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[name]


def _type_of(name: str, shape: tuple[int, ...], type_name: str) -> str:
    if len(shape) == 1:
        return "F32"
    if name in ("token_embd.weight", "output.weight"):
        return _EMBEDDING_TYPES.get(type_name, type_name)
    return "Q5_0" if type_name == "Q4_K" and shape[-1] % _SUPER_BLOCK else type_name


# ---- what a file tells


def _add_numbers(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, directory: Path, vocab_size: int) -> None:
    """Add a byte-level vocabulary.

    llama.cpp refuses one without merges. Where there are none the last token becomes a pair, so that there is one.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [by_id.get(number, f"[unused {number}]") for number in range(vocab_size)]
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    merges = [" ".join(pair) for pair in json.loads((directory / "tokenizer.json").read_text())["model"]["merges"]]
    if not merges:
        tokens[-1] = "Ġe"
        merges = ["Ġ e"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if number in special else _NORMAL for number in range(vocab_size)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def _named_weights(directory: Path, config: dict[str, Any]) -> Iterator[tuple[str, Floats]]:
    """Yield all weights in float32, by llama.cpp's names and in its order of rows."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from safetensors import safe_open

    architecture = _ARCHITECTURES[config["model_type"]]
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(numbers[architecture], config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (it is no mapping)
                weight = weights.get_tensor(name)
                module = name.split(".")[-2]
                if architecture == "llama" and module in heads:
                    weight = interleaved(weight, heads[module])
                found = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if found is None:
                    raise ValueError(f"{name} has no name in a GGUF file of {architecture}")
                yield found, weight.float().numpy()


def interleaved(weight: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Return rotary weights in llama.cpp's order of Llama's rows: pairs, where transformers has halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


# ---- types


def _q4_k(blocks: Floats) -> Bytes:
    """Quantize (num_blocks, 256) to eight groups each: 4 bits, a scale and an offset of 6 bits, and two float16."""
    groups = blocks.reshape(len(blocks), 8, 32)
    low = np.minimum(groups.min(axis=-1), 0)
    steps = (groups.max(axis=-1) - low) / 15
    wide_scale, scales = _in_parts(steps, 63)
    wide_offset, offsets = _in_parts(-low, 63)
    step = (wide_scale.astype(np.float32) * scales)[..., None]
    offset = (wide_offset.astype(np.float32) * offsets)[..., None]
    values = np.rint(_divided(groups + offset, step)).clip(0, 15).astype(np.uint8)
    pairs = values.reshape(len(blocks), 4, 2, 32)
    packed = (pairs[:, :, 0] | pairs[:, :, 1] << np.uint8(4)).reshape(len(blocks), -1)
    return np.concatenate(
        [wide_scale.view(np.uint8), wide_offset.view(np.uint8), _six_bits(scales, offsets), packed], axis=1
    )


def _six_bits(scales: Bytes, offsets: Bytes) -> Bytes:
    """Return eight scales and as many offsets, of 6 bits each, in 12 bytes."""
    low = scales[:, :4] | (scales[:, 4:] >> np.uint8(4)) << np.uint8(6)
    offset_low = offsets[:, :4] | (offsets[:, 4:] >> np.uint8(4)) << np.uint8(6)
    rest = scales[:, 4:] & np.uint8(15) | offsets[:, 4:] << np.uint8(4)
    return np.concatenate([low, offset_low, rest], axis=1)


def _q6_k(blocks: Floats) -> Bytes:
    """Quantize (num_blocks, 256) to sixteen groups each: 6 bits, a scale of 8, and a float16."""
    groups = blocks.reshape(len(blocks), 16, 16)
    wide, scales = _in_parts(np.abs(groups).max(axis=-1) / 31, 127)
    step = (wide.astype(np.float32) * scales)[..., None]
    values = (np.rint(_divided(groups, step)).clip(-32, 31) + 32).astype(np.uint8)
    quarters = values.reshape(len(blocks), 2, 4, 32)
    low, high = quarters & np.uint8(15), quarters >> np.uint8(4)
    low_bits = np.concatenate([low[:, :, :2] | low[:, :, 2:] << np.uint8(4)], axis=1).reshape(len(blocks), -1)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high_bits = np.bitwise_or.reduce(high << shifts, axis=2).reshape(len(blocks), -1)
    return np.concatenate([low_bits, high_bits, scales, wide.view(np.uint8)], axis=1)


def _in_parts(numbers: Floats, most: int) -> tuple[NDArray[np.float16], Bytes]:
    """Return numbers of a block, none below zero, as a float16 (num_blocks, 1) times integers up to `most`."""
    wide = (numbers.max(axis=1, keepdims=True) / most).astype(np.float16)
    parts = np.ceil(_divided(numbers, wide.astype(np.float32)) - 0.25).clip(0, most)
    return wide, parts.astype(np.uint8)


def _divided(numbers: Floats, by: Floats) -> Floats:
    return np.divide(numbers, by, out=np.zeros(np.broadcast_shapes(numbers.shape, by.shape), np.float32), where=by != 0)


_OWN = {"Q4_K": _q4_k, "Q6_K": _q6_k}


if __name__ == "__main__":
    raise SystemExit(main())
