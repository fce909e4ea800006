"""Experts of quantized checkpoints, multiplied as they are: near to what they are when dequantized, in less memory."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orcinus.engine.cpu.native_experts import NativeExperts
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models import loader
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.models.packed_types import packed_types_of
from orcinus.engine.startup.build import build_executor
from tests.integration.quantized_files import Kind, write_mxfp4, write_quantized
from tests.integration.test_gguf_families import typically_off
from tests.integration.test_gguf_in_blocks import logits_of
from tests.integration.test_int8 import greedy_cases
from tests.integration.tiny_models import engine_config, random_model
from tests.integration.truth import BLOCK_SIZE, MAX_MODEL_LEN, sampled_cases, serve_together_and_alone

pytestmark = pytest.mark.skipif(load_library() is None, reason="there is no library here")

CPU = torch.device("cpu")
CT = "compressed-tensors"
BF16 = torch.bfloat16
_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
_MOE: dict[str, Any] = _SHAPE | {"num_experts_per_tok": 2, "moe_intermediate_size": 96}
_LATENTS: dict[str, Any] = _MOE | {
    **{"num_key_value_heads": 4, "kv_lora_rank": 64, "q_lora_rank": 64, "head_dim": 32},
    **{"qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32},
    **{"n_routed_experts": 6, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "pad_token_id": 0,
}
_DELTA_NETS: dict[str, Any] = _MOE | {
    **{"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 32, "linear_value_head_dim": 32},
    **{"layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_experts": 6},
    "shared_expert_intermediate_size": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-MoE": ("Qwen3MoeConfig", _MOE | {"num_experts": 12}),
    "Mixtral": ("MixtralConfig", _SHAPE | {"num_experts_per_tok": 2, "num_local_experts": 4, "sliding_window": None}),
    "DeepSeek-V2": ("DeepseekV2Config", _LATENTS),
    "DeepSeek-V3": ("DeepseekV3Config", _LATENTS),
    "Qwen3-Next": ("Qwen3NextConfig", _DELTA_NETS),
    "Qwen3.5-MoE": ("Qwen3_5MoeTextConfig", _DELTA_NETS),
    "gpt-oss": ("GptOssConfig", _SHAPE | {"num_experts_per_tok": 2, "num_local_experts": 4, "intermediate_size": 96}),
}
KINDS = {
    "AWQ": Kind("awq", group=32),
    "GPTQ": Kind("gptq", group=32, symmetric=True),
    "GPTQ with zero points": Kind("gptq", group=32),
    "W4A16": Kind(CT, group=32, symmetric=True, dtype=BF16),
    "W8A8": Kind(CT, bits=8, group=-1, symmetric=True, packed=False, dtype=BF16),
}
CASES = [("Qwen3-MoE", kind) for kind in KINDS]
CASES += [(family, kind) for family in [*FAMILIES][1:-1] for kind in ("AWQ", "W4A16")] + [("gpt-oss", "MXFP4")]
Written = tuple[Path, Path]
Writer = Callable[[str, str], Written]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    def write(family: str, kind: str) -> Written:
        class_name, settings = FAMILIES[family]
        model, folder = random_model(class_name, **settings), tmp_path_factory.mktemp("files")
        return write_mxfp4(model, folder) if kind == "MXFP4" else write_quantized(model, folder, KINDS[kind])

    return cache(write)
