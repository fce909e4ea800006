"""Makes a model of any type tiny: its default configuration with every size made small, and random weights.

Sizes are told by the names of settings, which transformers' configurations share; a few types need more than that.
"""

from typing import Any

from tests.integration.tiny_models import CONTEXT, EOS_TOKEN_ID, VOCAB_SIZE, make_lively

FIRST_MARKER = 300  # tokens from here on stand for images and the like; no prompt has any

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "unpadded_vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "embedding_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "intermediate_size": 80,
    "ffn_dim": 80,
    "ffn_hidden_size": 80,
    "n_inner": 80,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "rotary_dim": 8,
    "max_position_embeddings": CONTEXT,
    "n_positions": CONTEXT,
    "sliding_window": 12,
    "attention_chunk_size": 128,
    "bos_token_id": 1,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": 0,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 40,
    "expert_ffn_hidden_size": 40,
    "intermediate_size_mlp": 80,
    "shared_expert_intermediate_size": 40,
    "shared_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "v_head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "query_pre_attn_scalar": 16,
    "floor_scale": 512,
    "word_embed_proj_dim": 64,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "max_target_positions": CONTEXT,
    "kv_n_heads": 2,
    "encoder_hash_byte_group_vocab": 64,
    "index_topk": 128,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_block_size": 8,
    "index_topk_blocks": 16,
    "dim": 64,
    "hidden_dim": 80,
    "time_step_min": 1e-30,  # transformers holds chunks to it and not single tokens
}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "depth": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "num_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "out_hidden_size": 64,
    "text_hidden_size": 64,
    "codebook_dim": 32,
    "pad_token_id": 0,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
    "d_model": 32,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "vocab_size": 64,
}
_OF_TYPE: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    },
    "gemma4_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "global_head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    },
}
_WITHOUT_HEAD_DIM = ("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl_text", "ministral", "nemotron")
_OF_TYPE |= {name: {"head_dim": 16} for name in _WITHOUT_HEAD_DIM}
_OF_TYPE["dots1"] = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
_OF_TYPE["nemotron"] = {"head_dim": 16, "num_key_value_heads": 2}
_OF_TYPE["lfm2_moe"] = {"layer_types": ["conv", "full_attention"] * 2}
_OF_TYPE["dbrx"] = {"attn_config": {"rope_theta": 10_000.0, "clip_qkv": 8.0}}
_OF_TYPE["deepseek_v2"] = {"num_experts_per_tok": 2}
_OF_TYPE["step3p5"] = {"sliding_window": 12}
_OF_TYPE["deepseek_ocr2_text"] = {"mlp_layer_types": ["dense", *["sparse"] * 3]}
_OF_TYPE["bamba"] = {"attn_layer_indices": [1, 3]}
_OF_TYPE["jamba"] = {"attn_layer_period": 2, "attn_layer_offset": 1}
_OF_TYPE["xmod"] = {"default_language": "en_XX"}
_OF_TYPE["granite4_vision"] = {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1]}
_OF_TYPE["chameleon"] = _OF_TYPE["emu3"] = {"vocabulary_map": {"<image>": FIRST_MARKER}}
_OF_TYPE["reformer"] = {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 16], "attn_layers": ["local"] * 4}
for _name in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"):
    _OF_TYPE[_name] = {"vision_start_token_id": FIRST_MARKER + 10}
_OF_TYPE["cohere_compass_text"] = {
    "rope_parameters": {
        f"{kind}_attention": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
        for kind in ("full", "sliding")
    }
}
_TEXT_NAMES = {"text_config", "decoder", "generator", "attn_config", "ffn_config", "thinker_config"}


# What some types want otherwise, to be tried in turn. None leaves a setting as the type has it.
CHANGES: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"head_dim": None},
    {"num_key_value_heads": 4, "head_dim": 8},
    {"num_key_value_heads": 4, "head_dim": None, "qk_head_dim": None},
    {"num_key_value_heads": 4, "head_dim": 24},
    {"mrope_section": [1, 1, 2]},
    {"mrope_section": [1, 1, 2], "num_key_value_heads": 4},
    {"mrope_section": [2, 1, 1], "num_key_value_heads": 4, "head_dim": None},
    {"head_dim": None, "qk_head_dim": None, "moe_intermediate_size": None, "num_experts_per_tok": None},
    {"head_dim": None, "num_hidden_layers": None, "num_layers": None, "num_key_value_heads": None},
    {"sliding_window": CONTEXT},
    {"num_heads": 8},
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": False, "seed": 22},
    {"hidden_size_per_layer_input": 0},
    {"layer_types": ["linear_attention", "full_attention"] * 2, "num_key_value_heads": 4, "head_dim": None},
    {"layer_types": ["linear_attention", "full_attention"] * 2, "num_key_value_heads": 4},
]


def tiny_config(model_type: str, change: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """Return a small configuration of this type, with one of `CHANGES`. Raises what its class raises."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    return config_class(**_settings(config_class(), change or {}, is_text=True) | overrides)


def _settings(config: Any, change: dict[str, Any], *, is_text: bool) -> dict[str, Any]:
    """Return the settings that make a configuration small, those of the configurations inside it included."""
    from transformers import PreTrainedConfig

    config.allow_global_per_layer_attribute_access = True
    sizes = {name: size for name, size in (_SIZES | change if is_text else _TOWER).items() if size is not None}
    settings = {name: _like(config, name, size) for name, size in sizes.items() if _has(config, name)}
    if is_text and getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder:
        settings["is_decoder"] = True  # as its causal class wants it
    markers = [name for name in sorted(vars(config)) if name.endswith(("_token_id", "_token_index"))]
    for i, name in enumerate(markers):
        if name not in sizes and isinstance(getattr(config, name), int):
            settings[name] = None if name.startswith("forced_") else FIRST_MARKER + i
    if is_text:
        settings |= _mrope(config, change.get("mrope_section", [2, 3, 3])) | _OF_TYPE.get(config.model_type, {})
    for name, inner in vars(config).items():
        if isinstance(inner, PreTrainedConfig):
            small = _settings(inner, change, is_text=is_text and name in _TEXT_NAMES)
            settings[name] = {"model_type": inner.model_type} | small | settings.get(name, {})
    return settings


def _has(config: Any, name: str) -> bool:
    """Return whether a configuration has this setting, and not a number that it makes of others."""
    return getattr(config, name, None) is not None and not isinstance(getattr(type(config), name, None), property)


def _like(config: Any, name: str, size: Any) -> Any:
    """Return a size in the form that a setting has: a list of equal ones where it cannot be a single one."""
    value, field = getattr(config, name), type(config).__dataclass_fields__.get(name)
    is_single = field is None or "int" in [part.strip() for part in str(field.type).split("|")]
    is_whole = is_single or isinstance(size, list) or not isinstance(value, list | tuple)
    return size if is_whole else [size] * len(value)


def _mrope(config: Any, section: list[int]) -> dict[str, Any]:
    """Return rotary positions of three axes that fit a small head, for a model that has such."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or not (
        "mrope_section" in rope or any(part in config.model_type for part in ("_vl", "glm", "omni"))
    ):
        return {}
    return {"rope_parameters": rope | {"mrope_section": section}}


def tiny_model(model_class: Any, config: Any, dtype: str = "float32", seed: int = 20) -> Any:
    """Return a model with random weights, the same at every call."""
    import torch

    torch.manual_seed(seed)
    model = model_class._from_config(config, dtype=getattr(torch, dtype), attn_implementation="eager").eval()
    small = {name: weight.clone() for name, weight in model.named_parameters() if _is_small(weight)}
    make_lively(model, seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in small:
                weight.copy_(small[name] + (weight - small[name]) * small[name].abs().mean())
    return model


def _is_small(weight: Any) -> bool:
    """Return whether a vector's numbers are so small that the noise of `make_lively` would drown them."""
    return weight.dim() < 2 and 0 < float(weight.detach().abs().mean()) < 0.1
