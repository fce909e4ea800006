"""The configuration of a model in a GGUF file: as transformers reads the file, with what that leaves out.

A file states a model's shape by llama.cpp's names of settings. transformers reads some architectures, not all of their
settings; its defaults, which are those of one published model, would silently stand for the others. Facts that no file
states (how a family scales its queries, say) are as llama.cpp has them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.platform.gguf_reader import read_gguf, read_metadata, vocabularies_left_out
from orcinus.engine.platform.model_source import ModelSource, gguf_path

# What gguf calls a setting, behind the architecture, and transformers' configurations do, where they have it.
_SETTINGS = {
    "attention.key_length": "head_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Architectures whose settings transformers reads whole.
_READ_WHOLE = ("qwen35", "qwen35moe", "lfm2", "gemma4", "minimax-m2")
# Of Gemma's largest models, by their layers: queries are scaled by the hidden size over the heads.
_LAYERS_WITH_SCALED_QUERIES = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True, slots=True)
class Metadata:
    """Holds what a file states, and the names of its tensors."""

    file: Path
    stated: dict[str, Any]
    tensors: tuple[str, ...]

    @property
    def architecture(self) -> str:
        return str(self.stated["general.architecture"])

    def setting(self, name: str) -> Any:
        """Return what is stated of the architecture, or None."""
        return self.stated.get(f"{self.architecture}.{name}")


def read_gguf_config(source: ModelSource) -> Any:
    """Return transformers' configuration. Raises `ModelLoadError` for architectures that nobody reads."""
    from transformers import AutoConfig

    file = gguf_path(source)
    stated, tensors = read_metadata(file)
    metadata = Metadata(file, stated, tensors)
    _check_layers(metadata)
    own = _own_config(metadata)
    if own is not None:
        return _without_heads(AutoConfig.for_model(**own), metadata)
    _check_architecture(metadata.architecture)
    with vocabularies_left_out():
        config = AutoConfig.from_pretrained(source.path_or_id, gguf_file=source.gguf_file)
    if (size := metadata.setting("vocab_size") or stated.get("tokenizer.ggml.tokens")) is not None:
        config.vocab_size = size
    _without_heads(config, metadata)
    if metadata.architecture not in _READ_WHOLE:
        _complete(config, metadata)
    return config


def known_architectures() -> list[str]:
    """Return what files may have as their architecture."""
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    others = {"general", "tokenizer", "t5", "umt5", "qwen2_moe", "qwen3_moe", "gpt_oss", "minimax_m2"}
    renamed = {"qwen2moe", "qwen3moe", "gpt-oss", "minimax-m2"}
    return sorted({*GGUF_CONFIG_ARCHS, *GGUF_SUPPORTED_ARCHITECTURES, *renamed} - others)


def _check_architecture(architecture: str) -> None:
    if architecture not in (known := known_architectures()):
        raise ModelLoadError(
            f"GGUF files of the architecture {architecture} cannot be read, only those of {', '.join(known)}:"
            " take the model's safetensors files"
        )


def _check_layers(metadata: Metadata) -> None:
    """Raise `ModelLoadError` over a file that has a head alone, as llama.cpp's converter writes with `--mtp`."""
    if metadata.setting("nextn_predict_layers") and not any(name.startswith("blk.0.") for name in metadata.tensors):
        raise ModelLoadError(
            f"{metadata.file} has a head for multi-token prediction, and none of the model's layers: take the file that"
            " has both"
        )


def _without_heads(config: Any, metadata: Metadata) -> Any:
    """Return the configuration without the layers of heads for multi-token prediction, which files count as layers."""
    count = metadata.setting("block_count") - (metadata.setting("nextn_predict_layers") or 0)
    if config.num_hidden_layers > count:
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:count]
        config.num_hidden_layers = count
    return config


def _own_config(metadata: Metadata) -> dict[str, Any] | None:
    """Return the configuration of what transformers does not read, or reads as something else."""
    if metadata.architecture == "llama" and metadata.setting("expert_count"):
        return _mixtral(metadata)
    return _gpt_oss(metadata) if metadata.architecture == "gpt-oss" else None


def _mixtral(metadata: Metadata) -> dict[str, Any]:
    return _common(metadata) | {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": metadata.setting("expert_count"),
        "num_experts_per_tok": metadata.setting("expert_used_count"),
        "intermediate_size": metadata.setting("expert_feed_forward_length") or metadata.setting("feed_forward_length"),
        "head_dim": metadata.setting("attention.key_length") or metadata.setting("rope.dimension_count"),
        "sliding_window": None,
        "rope_parameters": _rope(metadata),
    }


def _gpt_oss(metadata: Metadata) -> dict[str, Any]:
    """Return gpt-oss's settings; its layers attend to a window and to all that is there in turn."""
    count = metadata.setting("block_count")
    return _common(metadata) | {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "num_local_experts": metadata.setting("expert_count"),
        "num_experts_per_tok": metadata.setting("expert_used_count"),
        "intermediate_size": metadata.setting("expert_feed_forward_length"),
        "head_dim": metadata.setting("attention.key_length"),
        "sliding_window": metadata.setting("attention.sliding_window"),
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(count)],
        "rope_parameters": _rope(metadata) | {"truncate": False},
    }


def _common(metadata: Metadata) -> dict[str, Any]:
    setting, tokens = metadata.setting, "tokenizer.ggml"
    return {
        "max_position_embeddings": setting("context_length"),
        "hidden_size": setting("embedding_length"),
        "num_hidden_layers": setting("block_count"),
        "num_attention_heads": setting("attention.head_count"),
        "num_key_value_heads": setting("attention.head_count_kv"),
        "rms_norm_eps": setting("attention.layer_norm_rms_epsilon"),
        "vocab_size": setting("vocab_size") or metadata.stated.get(f"{tokens}.tokens"),
        "tie_word_embeddings": "output.weight" not in metadata.tensors,
        "bos_token_id": metadata.stated.get(f"{tokens}.bos_token_id"),
        "eos_token_id": metadata.stated.get(f"{tokens}.eos_token_id"),
        "pad_token_id": metadata.stated.get(f"{tokens}.padding_token_id"),
    }


def _rope(metadata: Metadata) -> dict[str, Any]:
    """Return rotary parameters: the base, and by what positions are scaled."""
    base = {"rope_type": "default", "rope_theta": metadata.setting("rope.freq_base") or 10_000.0}
    kind, factor = metadata.setting("rope.scaling.type"), metadata.setting("rope.scaling.factor")
    if kind not in ("linear", "yarn") or not factor:
        return base
    original = metadata.setting("rope.scaling.original_context_length")
    named = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    if kind == "yarn":
        named |= {
            "beta_fast": metadata.setting("rope.scaling.yarn_beta_fast"),
            "beta_slow": metadata.setting("rope.scaling.yarn_beta_slow"),
        }
    return base | {name: value for name, value in named.items() if value is not None}


# ---- what transformers leaves out of those that it reads


def _complete(config: Any, metadata: Metadata) -> None:
    for name, ours in _SETTINGS.items():
        if (value := metadata.setting(name)) is not None and hasattr(config, ours):
            setattr(config, ours, value)
    config.pad_token_id = metadata.stated.get("tokenizer.ggml.padding_token_id")
    complete = _OF_ARCHITECTURE.get(metadata.architecture)
    if complete is not None:
        complete(config, metadata)
    elif isinstance(getattr(config, "rope_parameters", None), dict):
        config.rope_parameters |= _rope(metadata)


def _complete_llama(config: Any, metadata: Metadata) -> None:
    config.rope_parameters |= _rope(metadata)
    config.attention_bias = "blk.0.attn_q.bias" in metadata.tensors
    if hasattr(config, "sliding_window"):
        config.sliding_window = metadata.setting("attention.sliding_window")


def _complete_gemma(config: Any, metadata: Metadata) -> None:
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    is_largest = _LAYERS_WITH_SCALED_QUERIES.get(metadata.architecture) == layers
    config.query_pre_attn_scalar = config.hidden_size // heads if is_largest else config.head_dim
    rope = _rope(metadata)
    if isinstance(config.rope_parameters.get("full_attention"), dict):  # those of windows are never scaled
        config.rope_parameters["full_attention"] |= rope
        if (local := metadata.setting("rope.freq_base_swa")) is not None:
            config.rope_parameters["sliding_attention"]["rope_theta"] = local
    else:
        config.rope_parameters |= rope


def _complete_phi3(config: Any, metadata: Metadata) -> None:
    """Set the share of a head that is rotated, the window, and the factors of long positions, which are tensors."""
    config.sliding_window = metadata.setting("attention.sliding_window") or None
    config.rope_parameters |= _rope(metadata)
    rotated, head_dim = metadata.setting("rope.dimension_count"), config.hidden_size // config.num_attention_heads
    if rotated:
        config.rope_parameters["partial_rotary_factor"] = rotated / head_dim
    if "rope_factors_long.weight" not in metadata.tensors:
        return
    original = metadata.setting("rope.scaling.original_context_length")
    config.original_max_position_embeddings = original
    config.rope_parameters |= {
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        **{f"{kind}_factor": _numbers(metadata, f"rope_factors_{kind}.weight") for kind in ("long", "short")},
    }


def _numbers(metadata: Metadata, name: str) -> list[float]:
    tensor = next(tensor for tensor in read_gguf(metadata.file).tensors if tensor.name == name)
    return [float(number) for number in tensor.data]


_OF_ARCHITECTURE: dict[str, Callable[[Any, Metadata], None]] = {
    "llama": _complete_llama,
    "mistral": _complete_llama,
    "gemma2": _complete_gemma,
    "gemma3": _complete_gemma,
    "phi3": _complete_phi3,
}
