"""Experts of quantized checkpoints, multiplied as they are: near to what they are when dequantized, in less memory."""

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3MoeForCausalLM

from orcinus.engine.cpu.native_experts import NativeExperts
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models import loader
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.models.packed_types import packed_types_of
from orcinus.engine.startup.build import build_executor
from tests.integration.quantized_files import Kind, write_mxfp4, write_quantized
from tests.integration.test_checkpoints import resident_kib
from tests.integration.test_gguf_families import typically_off
from tests.integration.test_gguf_in_blocks import logits_of
from tests.integration.test_int8 import greedy_cases
from tests.integration.tiny_models import HYBRIDS, engine_config, random_model
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
TYPES = {"AWQ": "awq in 4 bits", "GPTQ": "gptq in 4 bits", "GPTQ with zero points": "gptq in 4 bits", "MXFP4": "MXFP4"}
TYPES |= {"W4A16": f"{CT} in 4 bits", "W8A8": f"{CT} in 8 bits"}
WITH_OFFSETS = ("AWQ", "GPTQ with zero points")
Written = tuple[Path, Path]
Writer = Callable[[str, str], Written]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    def write(family: str, kind: str) -> Written:
        class_name, settings = FAMILIES[family]
        model, folder = random_model(class_name, **settings), tmp_path_factory.mktemp("files")
        return write_mxfp4(model, folder) if kind == "MXFP4" else write_quantized(model, folder, KINDS[kind])

    return cache(write)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_packed_experts_are_those_of_the_checkpoint(family: str, kind: str, written: Writer) -> None:
    """Exactly, but for what a float16 rounds of offsets: see `test_quantized_checkpoints.py`."""
    packed, plain = written(family, kind)
    model: Any = load_causal_lm(engine_config(packed, dtype="bfloat16"), CPU)
    twin: Any = load_causal_lm(engine_config(plain), CPU)
    native = {name: module for name, module in model.named_modules() if isinstance(module, NativeExperts)}
    with_experts = {name for name, module in twin.named_modules() if hasattr(module, "down_proj_bias") or is_3d(module)}
    assert native.keys() == with_experts
    for name, module in native.items():
        for found, exact in zip(rows_of(module), plain_rows_of(twin.get_submodule(name)), strict=True):
            bound = 2.0**-11 * 8 * float(exact.abs().max()) if kind in WITH_OFFSETS else 0.0
            assert float((found - exact).abs().max()) <= bound
    assert set(packed_types_of(model)) == {TYPES[kind]}


def is_3d(module: Any) -> bool:
    weight = getattr(module, "down_proj", None)
    return isinstance(weight, Tensor) and weight.dim() == 3


def rows_of(native: NativeExperts) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of all experts for gate, up and down; the first two take turns in a packed weight."""
    both, down = native._first[0], native._down
    runs = torch.arange(both.out_features).view(-1, 2, 16)
    gate, up = (both.exact_rows(runs[:, i].flatten()) for i in (0, 1))
    return gate, up, down.exact_rows(torch.arange(down.out_features))


def plain_rows_of(experts: Any) -> tuple[Tensor, Tensor, Tensor]:
    both, down = experts.gate_up_proj, experts.down_proj
    if experts.is_transposed:
        both, down = both.transpose(1, 2), down.transpose(1, 2)
    gate, up = both.chunk(2, 1) if experts.is_concatenated else (both[:, ::2], both[:, 1::2])
    return gate.flatten(0, 1), up.flatten(0, 1), down.flatten(0, 1)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_model_with_packed_experts_is_near_to_the_dequantized_one(family: str, kind: str, written: Writer) -> None:
    """A token's logits are off by three times what bfloat16 puts them off by, at most: see `test_gguf_families.py`.

    Where the likeliest token is clearly so, by four deviations of a difference between two logits that are that far
    off, it is the same. One in ten may go to other experts, where a router's two best are about equal.
    """
    packed, plain = written(family, kind)
    _, exact = logits_of(plain)
    twin, rounded = logits_of(packed, dtype="bfloat16", quantization="none")
    model, logits = logits_of(packed, dtype="bfloat16")
    assert packed_types_of(twin) == {}
    assert not any(weight.dim() > 2 for name, weight in model.named_parameters() if "conv" not in name)
    bound = 3.2 * typically_off(rounded, exact)
    assert 0 < typically_off(logits, exact) < bound
    first, second = exact.topk(2, dim=1).values.unbind(1)
    deviation = 2**0.5 * bound * exact.norm(dim=1) / exact.shape[1] ** 0.5
    is_clear = first - second > 4 * deviation
    assert is_clear.sum() > 20
    assert float((logits.argmax(dim=1) == exact.argmax(dim=1))[is_clear].float().mean()) >= 0.9


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_without_packing_experts_are_their_dequantized_twins(family: str, kind: str, written: Writer) -> None:
    packed, plain = written(family, kind)
    assert torch.equal(logits_of(packed, quantization="none")[1], logits_of(plain)[1])


@pytest.mark.parametrize(("family", "kind"), [("Qwen3-MoE", "AWQ"), ("Mixtral", "W4A16"), ("gpt-oss", "MXFP4")])
def test_tokens_do_not_depend_on_what_shares_the_batch(family: str, kind: str, written: Writer) -> None:
    config = engine_config(written(family, kind)[0], dtype="bfloat16", max_model_len=MAX_MODEL_LEN, deterministic=True)
    rng = random.Random(family)
    cases = greedy_cases(rng, 8) + sampled_cases(rng, 4)
    serve_together_and_alone(build_executor(replace(config, block_size=BLOCK_SIZE)), cases, rng)


@pytest.mark.parametrize(("family", "kind"), [("Qwen3-MoE", "AWQ"), ("DeepSeek-V3", "W4A16"), ("gpt-oss", "MXFP4")])
def test_what_is_served_is_told(family: str, kind: str, written: Writer) -> None:
    """Weights take what the checkpoint spends on them, and parameters are counted as if they were there."""
    packed, plain = written(family, kind)
    info, _ = build_executor(engine_config(packed, dtype="bfloat16"))
    twin, _ = build_executor(engine_config(plain, dtype="bfloat16"))
    assert info.num_parameters == twin.num_parameters
    stored = load_file(packed / "model.safetensors")
    num_bytes = sum(tensor.nbytes for tensor in stored.values() if tensor.dtype not in (torch.float16, BF16))
    # Scales are among what is stored in MXFP4 alone, where a packed row has room for those of eight groups at a time.
    factor = {"AWQ": 5 / 4.125, "W4A16": 4.5 / 4, "MXFP4": 4.5 / 4.25}[kind]
    assert sum(info.packed_types.values()) <= factor * num_bytes * 1.02
    assert info.weight_bytes < 0.6 * twin.weight_bytes


def test_routers_stay_in_float32_where_the_model_wants_it(written: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3MoeForCausalLM, "_keep_in_fp32_modules_strict", ["mlp.gate.weight"])
    model: Any = load_causal_lm(engine_config(written("Qwen3-MoE", "W4A16")[0], dtype="bfloat16"), CPU)
    assert {layer.mlp.gate.weight.dtype for layer in model.model.layers} == {torch.float32}
    assert model.model.embed_tokens.weight.dtype == BF16


def test_without_kernels_experts_are_dequantized(written: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load_library", lambda: None)
    for family, kind in (("Qwen3-MoE", "W4A16"), ("gpt-oss", "MXFP4")):
        packed, plain = written(family, kind)
        model, logits = logits_of(packed)
        assert packed_types_of(model) == {}
        assert torch.equal(logits, logits_of(plain)[1])


def qwen3_moe(directory: Path, kind: Kind, **settings: Any) -> Written:
    return write_quantized(random_model("Qwen3MoeConfig", **_MOE | {"num_experts": 4} | settings), directory, kind)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        (replace(KINDS["GPTQ"], ordered=True), {}, "their inputs are in an order of their own"),
        (KINDS["W8A8"], {"moe_intermediate_size": 80}, "their sizes, 128 and 80, are no multiples of 32"),
    ],
)
def test_experts_that_cannot_be_packed_are_dequantized_and_it_is_told(
    kind: Kind, settings: Any, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed, plain = qwen3_moe(tmp_path, kind, **settings)
    model, logits = logits_of(packed, dtype="bfloat16")
    assert packed_types_of(model)
    assert not any(isinstance(module, NativeExperts) for module in model.modules())
    assert f"the experts of 3 layers are dequantized to torch.bfloat16: {reason}" in caplog.messages
    assert typically_off(logits, logits_of(plain)[1]) < 0.1


def test_layers_whose_experts_are_not_all_quantized_are_dequantized(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One in the second layer is plain, and all are in the third."""
    packed, plain = qwen3_moe(tmp_path, KINDS["W4A16"])
    file, twin = packed / "model.safetensors", load_file(plain / "model.safetensors")
    tensors = load_file(file)
    for module in {name.rpartition(".")[0] for name in tensors}:
        if "layers.1.mlp.experts.2.up_proj" in module or "layers.2.mlp.experts" in module:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{module}.")}
            tensors[f"{module}.weight"] = twin[f"{module}.weight"].bfloat16()
    save_file(tensors, file)
    model, _ = logits_of(packed, dtype="bfloat16")
    assert [isinstance(layer.mlp.experts, NativeExperts) for layer in model.model.layers] == [True, False, False]
    assert [message for message in caplog.messages if "dequantized" in message] == [
        "the experts of 1 layers are dequantized to torch.bfloat16: not all of them are quantized"
    ]
    exact = load_causal_lm(engine_config(plain), CPU).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, exact[name].bfloat16()), name


def test_experts_in_8_bit_floats_are_dequantized(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packed, plain = qwen3_moe(tmp_path, KINDS["W8A8"])
    file = packed / "model.safetensors"
    tensors = load_file(file)
    twin = load_file(plain / "model.safetensors")
    for name, weight in tensors.items():
        if weight.dtype == torch.int8:
            tensors[name] = weight.to(torch.float8_e4m3fn)
            twin[name] = tensors[name].float() * tensors[f"{name}_scale"].float()
    save_file(tensors, file)
    save_file(twin, plain / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits_of(packed)[1], logits_of(plain)[1])
    assert "the experts of 3 layers are dequantized to torch.float32: floats of 8 bits" in caplog.messages


def test_models_whose_experts_are_of_another_kind_are_dequantized_by_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nemotron-H's experts have no gates."""
    class_name, settings = HYBRIDS["nemotron_h"]
    packed, plain = write_quantized(random_model(class_name, **settings), tmp_path, KINDS["W8A8"])
    model, logits = logits_of(packed)
    assert packed_types_of(model) == {}
    assert torch.equal(logits, logits_of(plain)[1])
    assert "weights of the checkpoint are dequantized: their names are not the model's own" in caplog.messages


def test_experts_that_are_missing_are_named(tmp_path: Path) -> None:
    packed, _ = qwen3_moe(tmp_path, KINDS["W4A16"])
    file = packed / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "experts.3.up_proj" not in name}, file)
    with pytest.raises(ModelLoadError, match="experts"):
        load_causal_lm(engine_config(packed), CPU)


def test_weights_of_layers_that_predict_further_and_biases_of_zeros_are_passed_over(tmp_path: Path) -> None:
    """As DeepSeek-V3 is published, and as GPTQ's quantizers write layers without biases."""
    packed, _ = write_quantized(random_model("DeepseekV3Config", **_LATENTS), tmp_path, KINDS["GPTQ"])
    file = packed / "model.safetensors"
    tensors = load_file(file)
    _, logits = logits_of(packed, dtype="bfloat16")
    for name, tensor in list(tensors.items()):
        if name.startswith("model.layers.2."):
            tensors[name.replace("layers.2.", "layers.61.")] = tensor.clone()
        if name.endswith(".scales"):
            tensors[name.replace("scales", "bias")] = torch.zeros(tensor.shape[1], dtype=torch.float16)
    save_file(tensors, file)
    model, with_more = logits_of(packed, dtype="bfloat16")
    assert sum(isinstance(module, NativeExperts) for module in model.modules()) == 2
    assert torch.equal(with_more, logits)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["MXFP4", "AWQ"])
def test_experts_are_at_no_time_there_in_16_bits(kind: str, tmp_path: Path) -> None:
    """A copy of these in bfloat16 would be 0.2 GB, or of one layer 0.05."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 4, "num_experts_per_tok": 2}
    if kind == "MXFP4":
        settings = _SHAPE | sizes | {"intermediate_size": 512, "num_local_experts": 32}
        packed, plain = write_mxfp4(random_model("GptOssConfig", **settings), tmp_path)
    else:
        settings = _SHAPE | sizes | {"moe_intermediate_size": 512, "num_experts": 32}
        packed, plain = write_quantized(random_model("Qwen3MoeConfig", **settings), tmp_path, KINDS[kind])
    parameters, _, whole = resident_kib(plain, "none")
    assert parameters > 95e6
    _, now, most = resident_kib(packed)
    saved = parameters * 2 * (16 - 5) / 16 / 1024
    assert now < whole - 0.9 * saved
    assert most < whole - 0.9 * saved
