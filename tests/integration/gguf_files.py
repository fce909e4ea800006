"""Writes models as GGUF files: llama.cpp's names, its layout of some weights, and its blocks of 8 or fewer bits."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from tests.integration.gguf_blocks import random_blocks

Q = gguf.GGMLQuantizationType
# Architectures whose norms multiply by 1 more than what transformers keeps.
_ZERO_CENTRED = ("gemma2", "gemma3", "qwen35", "qwen35moe")
# What gguf has no name for, by the end of transformers' name.
_NAMES = {"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias", "self_attn.sinks": "attn_sinks.weight"}
# Those of heads for multi-token prediction, by the names of either kind of checkpoint.
_HEAD_NAMES = {
    **{"fc": "eh_proj", "pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "norm": "shared_head_norm"},
    **{"eh_proj": "eh_proj", "enorm": "enorm", "hnorm": "hnorm", "shared_head.norm": "shared_head_norm"},
    **{"embed_tokens": "embed_tokens", "shared_head.head": "shared_head_head"},
}


def write_gguf(
    model: Any,
    file: Path,
    architecture: str = "llama",
    quantization: Any = Q.F32,
    blocks: dict[str, str] | None = None,
    *,
    fuses_experts: bool = False,
    head: dict[str, Tensor] | None = None,
) -> Path:
    """Write a model. Matrices are quantized, vectors stay in float32.

    Behind its layers lies its `head` for multi-token prediction, of weights by their names in a checkpoint.

    In place of matrices with one of the names of `blocks` in theirs there are random ones, of the type that it names.
    Gate and up of experts are one tensor if it `fuses_experts`.
    """
    writer = gguf.GGUFWriter(file, architecture)
    _write_settings(writer, model.config, architecture, num_heads=0 if head is None else 1)
    named = _named_as_in_llama_cpp(model, architecture)
    if head is not None:
        named += _head_as_in_llama_cpp(head, model.config, architecture)
    for name, weight in _with_fused_experts(named) if fuses_experts else named:
        made_up = next((kind for part, kind in (blocks or {}).items() if part in name and weight.dim() > 1), None)
        if made_up is not None:
            rows = math.prod(weight.shape[:-1])
            values = random_blocks(made_up, rows, weight.shape[-1], size=0.06, seed=sum(name.encode()))
            values = values.reshape(*weight.shape[:-1], -1)
            writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[made_up])
            continue
        is_small = weight.dim() == 1 or any(part in name for part in ("conv1d.", "conv.conv.", "gate_inp", "exps.bias"))
        kind = Q.F32 if is_small else quantization
        writer.add_tensor(name, gguf.quantize(weight.float().contiguous().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_settings(writer: Any, config: Any, architecture: str, *, num_heads: int) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers + num_heads)
    if num_heads:
        writer.add_nextn_predict_layers(num_heads)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", None) or config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_token_list([str(i) for i in range(config.vocab_size)])
    eos = config.eos_token_id
    if eos is not None:
        writer.add_eos_token_id(eos)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if architecture == "lfm2":
        heads = config.num_key_value_heads
        writer.add_head_count_kv([heads if kind == "full_attention" else 0 for kind in config.layer_types])
        writer.add_shortconv_l_cache(config.conv_L_cache)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if hasattr(config, "intermediate_size"):
        writer.add_feed_forward_length(config.intermediate_size)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    for name, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, name, None) is not None:
            add(getattr(config, name))
    _write_rope(writer, config, head_dim)
    _write_experts(writer, config)
    if architecture in ("qwen35", "qwen35moe"):
        _write_delta_nets(writer, config)


def _write_rope(writer: Any, config: Any, head_dim: int) -> None:
    whole = config.rope_parameters
    rope = whole.get("full_attention", whole)
    writer.add_rope_freq_base(rope["rope_theta"])
    if "sliding_attention" in whole:
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", whole["sliding_attention"]["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if (sections := rope.get("mrope_section")) is not None:
        writer.add_rope_dimension_sections([*sections, 0])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _write_experts(writer: Any, config: Any) -> None:
    count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if count:
        writer.add_expert_count(count)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(
            getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        )
    if (shared := getattr(config, "shared_expert_intermediate_size", None)) is not None:
        writer.add_expert_shared_feed_forward_length(shared)


def _write_delta_nets(writer: Any, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_num_value_heads * config.linear_value_head_dim)
    writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)


# ---- weights


def _named_as_in_llama_cpp(model: Any, architecture: str) -> list[tuple[str, Tensor]]:
    own = {name: weight for name, weight in model.state_dict().items() if name not in model.all_tied_weights_keys}
    return _named(own, model.config, architecture) + list(_rope_factors(model.config))


def _head_as_in_llama_cpp(weights: dict[str, Tensor], config: Any, architecture: str) -> list[tuple[str, Tensor]]:
    """Return a head's weights as those of a layer more, and by names of their own."""
    prefix, layer, own = f"model.layers.{config.num_hidden_layers}.", {}, []
    for name, weight in weights.items():
        part = name.removeprefix("mtp.layers.0.").removeprefix("mtp.").removeprefix(prefix)
        theirs = _HEAD_NAMES.get(part.removesuffix(".weight"))
        if theirs is None:
            layer[prefix + part] = weight
            continue
        is_centred = "norm" in theirs and architecture in _ZERO_CENTRED
        own.append((f"blk.{config.num_hidden_layers}.nextn.{theirs}.weight", weight + 1 if is_centred else weight))
    return _named(layer, config, architecture) + own


def _named(weights: dict[str, Tensor], config: Any, architecture: str) -> list[tuple[str, Tensor]]:
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], config.num_hidden_layers + 1)
    named: list[tuple[str, Tensor]] = []
    for name, weight in weights.items():
        if ".experts." in name:
            named += _experts(name, weight, is_interleaved=architecture == "gpt-oss")
            continue
        laid_out = _laid_out(name, weight, config, architecture)
        known = next((f"blk.{name.split('.')[2]}.{ours}" for end, ours in _NAMES.items() if name.endswith(end)), None)
        found = known or names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        named.append((found, laid_out))
    return named


def _laid_out(name: str, weight: Tensor, config: Any, architecture: str) -> Tensor:
    """Return a weight as llama.cpp has it."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads and architecture == "llama":
        return interleaved(weight, heads)
    if "norm.weight" in name and architecture in _ZERO_CENTRED and "linear_attn" not in name:
        return weight + 1
    if name.endswith("A_log"):
        weight = -weight.exp()
    if "linear_attn" in name:
        weight = _by_value_heads(name, weight, config)
    if "shared_expert_gate" in name:
        return weight.squeeze(0)
    return weight.squeeze(1) if re.search(r"conv(1d)?\.weight", name) and weight.dim() == 3 else weight


def _by_value_heads(name: str, weight: Tensor, config: Any) -> Tensor:
    """Return weights whose heads of values take turns, where transformers has those of one key side by side."""
    keys, dim = config.linear_num_key_heads, config.linear_value_head_dim
    per_key = config.linear_num_value_heads // keys
    heads = torch.arange(keys * per_key).view(keys, per_key).t().flatten()
    numbers = (heads[:, None] * dim + torch.arange(dim)).flatten()
    before = torch.arange(2 * keys * config.linear_key_head_dim)
    match name.split("linear_attn.")[1].removesuffix(".weight"):
        case "in_proj_qkv" | "conv1d":
            return weight[torch.cat([before, len(before) + numbers])]
        case "in_proj_z":
            return weight[numbers]
        case "out_proj":
            return weight[:, numbers]
        case "A_log" | "dt_bias" | "in_proj_a" | "in_proj_b":
            return weight[heads]
    return weight


def _experts(name: str, weight: Tensor, *, is_interleaved: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield a layer's experts as (num_experts, out_features, in_features), gate and up by themselves."""
    layer, key = name.split(".")[2], name.split(".experts.")[1]
    suffix = "bias" if key.endswith("_bias") else "weight"
    if is_interleaved and suffix == "weight":
        weight = weight.transpose(1, 2)
    if key.startswith("down_proj"):
        yield f"blk.{layer}.ffn_down_exps.{suffix}", weight
        return
    halves = (weight[:, ::2], weight[:, 1::2]) if is_interleaved else weight.chunk(2, dim=1)
    for part, half in zip(("gate", "up"), halves, strict=True):
        yield f"blk.{layer}.ffn_{part}_exps.{suffix}", half


def _with_fused_experts(named: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    weights = dict(named)
    for name, weight in named:
        if "ffn_gate_exps" in name:
            yield name.replace("gate", "gate_up"), torch.cat([weight, weights[name.replace("gate", "up")]], dim=1)
        elif "ffn_up_exps" not in name:
            yield name, weight


def _rope_factors(config: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield by what llama.cpp divides angles, where a configuration's kind of scaling is not one that it has."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        compute: Any = ROPE_INIT_FUNCTIONS["llama3"]
        scaled, _ = compute(config, torch.device("cpu"))
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
        yield "rope_freqs.weight", plain / scaled
    if rope.get("rope_type") == "longrope":
        for kind in ("long", "short"):
            yield f"rope_factors_{kind}.weight", torch.tensor(rope[f"{kind}_factor"])


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Return rotary weights in llama.cpp's order, which takes turns where transformers' has halves."""
    rows, *columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, *columns)
    return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()
