"""Builds tiny models with random weights, one of each family, and a byte-level tokenizer for them.

Weights are larger than an initializer would make them, and the output embedding is not tied to the input one, so that
greedy decoding wanders through the vocabulary instead of repeating one token.
"""

import json
from pathlib import Path
from typing import Any

from orcinus.config.engine_config import EngineConfig

VOCAB_SIZE = 320
EOS_TOKEN_ID = 2
CONTEXT = 256

_DENSE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_GEMMA: dict[str, Any] = _DENSE | {
    "query_pre_attn_scalar": 16,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
# The last three layers have their keys and values from the two before them.
_GEMMA3N: dict[str, Any] = _DENSE | {
    "num_hidden_layers": 6,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 3,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.0] * 6,
}
_MOE: dict[str, Any] = _DENSE | {"num_experts_per_tok": 2}

# Latents of rank 16 with a rotary part of 8; heads have keys of 12 + 8 and values of 16.
_MLA: dict[str, Any] = _DENSE | {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 16,
}
_MLA_MOE: dict[str, Any] = _MLA | {
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "pad_token_id": 0,
}
_GLM4_MOE: dict[str, Any] = _MOE | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
    "routed_scaling_factor": 1.5,
    "pad_token_id": 0,
}
_INDEXED: dict[str, Any] = {"index_topk": 128, "index_n_heads": 2, "index_head_dim": 16}
_LONGCAT: dict[str, Any] = _MLA_MOE | {
    "num_layers": 2,
    "ffn_hidden_size": 80,
    "expert_ffn_hidden_size": 40,
    "moe_topk": 2,
    "zero_expert_num": 2,
}

# Family -> configuration class, and what differs from its defaults. Windows are shorter than the tests' prompts.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _DENSE),
    "mistral": ("MistralConfig", _DENSE | {"sliding_window": 10}),
    "qwen2": ("Qwen2Config", _DENSE),
    "qwen3": ("Qwen3Config", _DENSE),
    "gemma2": ("Gemma2Config", _GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0}),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
    "gemma3n": ("Gemma3nTextConfig", _GEMMA3N),
    "phi": ("PhiConfig", _DENSE | {"hidden_size": 64, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", _DENSE | {"hidden_size": 64, "sliding_window": 20, "pad_token_id": 0}),
    "gpt2": ("GPT2Config", {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}),
    "gpt_neox": ("GPTNeoXConfig", _DENSE | {"hidden_size": 64, "rotary_pct": 0.25}),
    "opt": ("OPTConfig", _DENSE | {"ffn_dim": 80, "word_embed_proj_dim": 48}),
    "mixtral": ("MixtralConfig", _MOE | {"num_local_experts": 4, "sliding_window": None}),
    "qwen3_moe": ("Qwen3MoeConfig", _MOE | {"num_experts": 6, "moe_intermediate_size": 40}),
    "gpt_oss": ("GptOssConfig", _MOE | {"num_local_experts": 4, "sliding_window": 12}),
    "deepseek_v2": ("DeepseekV2Config", _MLA_MOE),
    "deepseek_v3": ("DeepseekV3Config", _MLA_MOE),
    "deepseek_v32": ("DeepseekV32Config", _MLA_MOE | _INDEXED),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", _MLA_MOE),
    "glm4_moe": ("Glm4MoeConfig", _GLM4_MOE),
    "minicpm3": ("MiniCPM3Config", _MLA),
    "longcat_flash": ("LongcatFlashConfig", _LONGCAT),
    "mbart": (
        "MBartConfig",
        {
            "d_model": 48,
            "decoder_layers": 3,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 80,
            "forced_eos_token_id": None,
        },
    ),
    "dory": (
        "DoryConfig",
        _DENSE | {"num_hidden_layers": 4, "n_input_layers": 1, "n_output_layers": 1, "sliding_window": 12},
    ),
}

_DELTA_NET: dict[str, Any] = _DENSE | {
    "num_hidden_layers": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
}
_CONV: dict[str, Any] = _DENSE | {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 16}
_MAMBA2: dict[str, Any] = _DENSE | {
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
# Families with layers that keep a state for each sequence; the Mambas have no others.
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5": ("Qwen3_5TextConfig", _DELTA_NET),
    "qwen3_5_moe": (
        "Qwen3_5MoeTextConfig",
        _DELTA_NET
        | {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        _DELTA_NET
        | {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "olmo_hybrid": ("OlmoHybridConfig", _DELTA_NET | {"linear_num_value_heads": 2, "pad_token_id": 0}),
    "lfm2": ("Lfm2Config", _CONV),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        _CONV | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "num_dense_layers": 1},
    ),
    "lfm3": (
        "Lfm3Config",
        _CONV | {"pad_token_id": 0, "sliding_window": 12, "layer_types": ["conv", "sliding_attention", "conv"]},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        _MAMBA2
        | {
            "layer_types": ["mamba", "attention", "mamba"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 40,
        },
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {key: value for key, value in _DENSE.items() if key != "num_hidden_layers"}
        | {
            "layers_block_type": ["mamba", "attention", "mlp", "mamba", "moe"],
            "mamba_num_heads": 6,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "time_step_min": 1e-30,  # single tokens are not held to it by transformers, only chunks are
            "n_routed_experts": 4,
            "moe_intermediate_size": 40,
            "moe_shared_expert_intermediate_size": 40,
        },
    ),
    "falcon_h1": ("FalconH1Config", _MAMBA2 | {"mamba_d_ssm": 96}),
    "bamba": ("BambaConfig", _MAMBA2 | {"attn_layer_indices": [1]}),
    "kimi_linear": (
        "KimiLinearConfig",
        _DENSE
        | {
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "pad_token_id": 0,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "linear_head_dim": 16,
            "linear_num_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
        },
    ),
    "mamba": ("MambaConfig", {"hidden_size": 48, "state_size": 8, "num_hidden_layers": 3, "pad_token_id": 0}),
    "mamba2": (
        "Mamba2Config",
        {
            "hidden_size": 48,
            "num_heads": 6,
            "head_dim": 16,
            "state_size": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "num_hidden_layers": 3,
        },
    ),
    "jamba": (
        "JambaConfig",
        _MOE
        | {
            "num_experts": 4,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
}


def build_model(family: str, directory: Path, **overrides: Any) -> Path:
    """Write a model of this family (float32, safetensors) and return its directory."""
    class_name, settings = (FAMILIES | HYBRIDS)[family]
    random_model(class_name, **settings | overrides).save_pretrained(directory)
    return directory


def random_model(class_name: str, dtype: str = "float32", attention: str | None = None, **settings: Any) -> Any:
    """A causal language model of this configuration class, the same at every call."""
    import torch
    import transformers

    config = getattr(transformers, class_name)(
        **{
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 1,
            "eos_token_id": EOS_TOKEN_ID,
            "tie_word_embeddings": False,
            **settings,
        }
    )
    torch.manual_seed(20)
    make: Any = transformers.AutoModelForCausalLM.from_config
    model = make(config, dtype=getattr(torch, dtype), attn_implementation=attention).eval()
    make_lively(model)
    return model


def make_lively(model: Any, seed: int = 21) -> None:
    """Give every layer a say in the output: variance-preserving matrices, and biases and gains that differ."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2:
                weight.add_(0.2 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name:
                weight.copy_(noise)
            else:
                weight.copy_(noise * 1.5 / weight.shape[-1] ** 0.5)


def build_tokenizer(directory: Path, chat_template: str | None = None) -> Path:
    """Add a byte-level tokenizer of `VOCAB_SIZE` tokens to a model directory: 4 special ones, 256 bytes, words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<user>"])}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[symbol] = len(vocab)
    merges = _merges(vocab, VOCAB_SIZE - len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in list(vocab)[:4]])
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    if chat_template is not None:
        fast.chat_template = chat_template
    fast.save_pretrained(directory)
    return directory


def _merges(vocab: dict[str, int], count: int) -> list[tuple[str, str]]:
    """Pairs of lower-case letters, common ones first: enough for tokens of more than one byte to occur."""
    letters = "etaoinshrdlu"
    merges = [(a, b) for a in letters for b in letters][:count]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    return merges


def set_config(directory: Path, **values: Any) -> None:
    """Change a written model's config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def engine_config(model: Path, **overrides: Any) -> EngineConfig:
    """Small and in float32 on the CPU, unless told otherwise."""
    settings: dict[str, Any] = {
        "model": str(model),
        "dtype": "float32",
        "device": "cpu",
        "quantization": None,
        "trust_remote_code": False,
        "use_generation_config": True,
        "pooling": "auto",
        "max_model_len": None,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "target_itl_ms": None,
        "target_ttft_ms": 500.0,
        "kv_cache_memory": None,
        "state_cache_memory": None,
        "block_size": 8,
        "enable_prefix_caching": True,
        "batching": "continuous",
        "batch_wait_ms": 0.0,
        "deterministic": None,
        "seed": 0,
        "log_level": "warning",
        "log_format": "text",
    }
    return EngineConfig(**settings | overrides)
