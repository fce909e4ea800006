"""GGUF files of each family that is read: as the model that they were written from, and in their blocks."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.models.packed_types import packed_types_of
from tests.integration.gguf_files import Q, write_gguf
from tests.integration.test_gguf_in_blocks import CPU, logits_of, off
from tests.integration.tiny_models import engine_config, random_model

_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 96}
_LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 128,
}
_YARN = {"rope_type": "yarn", "rope_theta": 150_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
_LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 512},
    **{"long_factor": [1.0 + 0.1 * i for i in range(16)], "short_factor": [1.0 + 0.01 * i for i in range(16)]},
}
_GEMMA = {
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
    "hidden_activation": "gelu_pytorch_tanh",
}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
}
_DELTA_NETS = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32},
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "rope_parameters": {
        **{"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
        **{"mrope_section": [2, 1, 1], "mrope_interleaved": True},
    },
}
_LFM2 = {"layer_types": ["conv", "full_attention", "conv", "conv"], "block_auto_adjust_ff_dim": False}

# Architecture in the file, class of the configuration, and what is special in it.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("llama", "LlamaConfig", {}),
    "Llama 3.1": ("llama", "LlamaConfig", {"rope_parameters": _LLAMA3}),
    "Llama with biases": ("llama", "LlamaConfig", {"attention_bias": True}),
    "Mistral": ("llama", "MistralConfig", {"sliding_window": None}),
    "Mixtral": ("llama", "MixtralConfig", {"num_local_experts": 4, "sliding_window": None}),
    "Qwen2": ("qwen2", "Qwen2Config", {"head_dim": 32}),
    "Qwen3": ("qwen3", "Qwen3Config", {"rope_parameters": _YARN, "tie_word_embeddings": True}),
    "Qwen3-MoE": ("qwen3moe", "Qwen3MoeConfig", _MOE | {"num_experts": 6, "norm_topk_prob": True}),
    "Qwen3.5": ("qwen35", "Qwen3_5TextConfig", _DELTA_NETS),
    "Qwen3.5-MoE": (
        "qwen35moe",
        "Qwen3_5MoeTextConfig",
        _DELTA_NETS | _MOE | {"num_experts": 6, "shared_expert_intermediate_size": 64},
    ),
    "Gemma 2": ("gemma2", "Gemma2Config", _GEMMA | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}),
    "Gemma 3": ("gemma3", "Gemma3TextConfig", _GEMMA | {"rope_parameters": _GEMMA3_ROPE}),
    "Phi-3": ("phi3", "Phi3Config", {"pad_token_id": 0, "sliding_window": 100}),
    "Phi-3 with long positions": (
        "phi3",
        "Phi3Config",
        {"pad_token_id": 0, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 512},
    ),
    "gpt-oss": (
        "gpt-oss",
        "GptOssConfig",
        {
            **{"num_experts_per_tok": 2, "num_local_experts": 4, "sliding_window": 64},
            "rope_parameters": _YARN | {"truncate": False},
        },
    ),
    "LFM2": ("lfm2", "Lfm2Config", _LFM2),
}
# Experts as they are published: in a table's four bits.
_BLOCKS = {"gpt-oss": {"exps.weight": "MXFP4"}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], tuple[Any, Path]]:
    """A family's model, and the file that it is written to in a type."""

    def write(family: str, quantization: Any) -> tuple[Any, Path]:
        architecture, class_name, settings = FAMILIES[family]
        model = random_model(class_name, **_SHAPE | {"tie_word_embeddings": False} | settings)
        blocks = None if quantization is Q.F32 else _BLOCKS.get(family)
        folder = tmp_path_factory.mktemp("files")
        return model, write_gguf(model, folder / "model.gguf", architecture, quantization, blocks)

    return cache(write)


def typically_off(logits: Tensor, exact: Tensor) -> float:
    errors = (logits - exact).norm(dim=1) / exact.norm(dim=1)
    return float(errors.median())


@pytest.mark.parametrize("family", FAMILIES)
def test_file_is_read_as_the_model_that_it_was_written_from(family: str, written: Callable[..., Any]) -> None:
    """Weights, and what the configuration says: positions, windows, caps, routing; beyond windows and contexts."""
    model, file = written(family, Q.F32)
    read, logits = logits_of(file, dtype="float32", quantization="none")
    for name, weight in model.state_dict().items():
        assert torch.allclose(read.state_dict()[name], weight, rtol=0, atol=1e-6), name
    ids = torch.randint(0, 320, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.float()(ids).logits[0]
    assert off(logits, expected) < 1e-4


@pytest.mark.skipif(load_library() is None, reason="there is no library here")
@pytest.mark.parametrize(
    ("family", "quantization"),
    [(family, (Q.Q8_0, Q.Q4_0)[i % 2]) for i, family in enumerate(FAMILIES)] + [("Llama", Q.Q4_0)],
    ids=lambda value: getattr(value, "name", value),
)
def test_family_in_blocks_is_near_to_the_dequantized_one(
    family: str, quantization: Any, written: Callable[..., Any]
) -> None:
    """A token's logits are off by about three times what bfloat16 puts them off by, at most.

    The largest of 32 normal numbers is 2.35 times their deviation, and with 127 steps up to it a number is off by
    0.0053 of that; in bfloat16 it is off by 0.0017. The token is that in the middle: where a router's two best are
    about equal, some tokens go to other experts.
    """
    _, file = written(family, quantization)
    _, exact = logits_of(file, dtype="float32", quantization="none")
    _, rounded = logits_of(file, dtype="bfloat16", quantization="none")
    model, logits = logits_of(file, dtype="bfloat16")
    assert packed_types_of(model)
    plain = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    assert all(name.endswith("shared_expert_gate") for name in plain)
    assert not any(weight.dim() > 2 for name, weight in model.named_parameters() if "conv" not in name)
    assert 0 < typically_off(logits, exact) < 3.2 * typically_off(rounded, exact)


@pytest.mark.skipif(load_library() is None, reason="there is no library here")
@pytest.mark.parametrize("family", ["Qwen3-MoE", "gpt-oss"])
@pytest.mark.parametrize("settings", [{"dtype": "float32", "quantization": "none"}, {"dtype": "bfloat16"}])
def test_gate_and_up_of_experts_may_be_one_tensor(family: str, settings: Any, tmp_path: Path) -> None:
    architecture, class_name, special = FAMILIES[family]
    model = random_model(class_name, **_SHAPE | {"tie_word_embeddings": False} | special)
    apart = write_gguf(model, tmp_path / "apart.gguf", architecture, Q.Q8_0)
    fused = write_gguf(model, tmp_path / "fused.gguf", architecture, Q.Q8_0, fuses_experts=True)
    assert torch.equal(logits_of(fused, **settings)[1], logits_of(apart, **settings)[1])


def test_architecture_that_is_not_read_is_named(tmp_path: Path) -> None:
    model = random_model("LlamaConfig", **_SHAPE)
    file = write_gguf(model, tmp_path / "model.gguf", "deepseek2")
    with pytest.raises(ModelLoadError, match=r"architecture deepseek2 cannot be read, only those of .*gpt-oss.*qwen35"):
        load_causal_lm(engine_config(file), CPU)
