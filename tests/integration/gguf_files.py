"""Writes models as GGUF files: llama.cpp's names, its layout of some weights, and its blocks of 8 or fewer bits."""

from pathlib import Path
from typing import Any

import gguf
import torch

from tests.integration.gguf_blocks import random_blocks

Q = gguf.GGMLQuantizationType


def write_gguf(
    model: Any, file: Path, architecture: str = "llama", quantization: Any = Q.F32, blocks: dict[str, str] | None = None
) -> Path:
    """Write a model of the Llama family. Matrices are quantized, vectors stay in float32.

    In place of matrices with one of the names of `blocks` in theirs there are random ones, of the type that it names.
    """
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(config.eos_token_id)
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    for name, weight in _named_as_in_llama_cpp(model, architecture):
        made_up = next((kind for part, kind in (blocks or {}).items() if part in name and weight.dim() == 2), None)
        if made_up is not None:
            values = random_blocks(made_up, *weight.shape, size=0.06, seed=sum(name.encode()))
            writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[made_up])
            continue
        kind = quantization if weight.dim() > 1 else Q.F32
        writer.add_tensor(name, gguf.quantize(weight.float().contiguous().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _named_as_in_llama_cpp(model: Any, architecture: str) -> list[tuple[str, torch.Tensor]]:
    config = model.config
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], config.num_hidden_layers)
    named = []
    for name, weight in model.state_dict().items():
        if name in model.all_tied_weights_keys:
            continue
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), weight.chunk(2, dim=1), strict=True):
                named.append((f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight", half))
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        laid_out = interleaved(weight, heads) if heads and architecture == "llama" else weight
        suffix = "" if name.endswith((".weight", ".bias")) else ".weight"  # of the experts' down projections
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        named.append((found + suffix, laid_out))
    return named


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rotary weights in llama.cpp's order, which takes turns where transformers' has halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns).contiguous()
