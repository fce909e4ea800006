"""Checkpoints that are quantized already, multiplied as they are: near to what they are when dequantized."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orcinus.engine.cpu.decoder_layers import num_native_layers
from orcinus.engine.cpu.grouped_weight import GroupedWeight
from orcinus.engine.cpu.joined_linear import LinearPart
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.cpu.reordered_linear import ReorderedLinear
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models import loader
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.models.packed_types import packed_types_of
from orcinus.engine.startup.build import build_executor
from tests.integration.quantized_files import Kind, write_quantized
from tests.integration.test_gguf_in_blocks import SHAPE, logits_of, off
from tests.integration.test_int8 import greedy_cases
from tests.integration.tiny_models import engine_config, random_model, set_config
from tests.integration.truth import BLOCK_SIZE, MAX_MODEL_LEN, sampled_cases, serve_together_and_alone

LIBRARY = load_library()
HAS_LAYERS = LIBRARY is not None and LIBRARY.has_decoder
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="there is no library here")

CPU = torch.device("cpu")
CT = "compressed-tensors"
BF16 = torch.bfloat16
KINDS = {
    "AWQ": Kind("awq"),
    "GPTQ": Kind("gptq", symmetric=True),
    "GPTQ with zero points": Kind("gptq", group=64),
    "GPTQ in order of activations": Kind("gptq", ordered=True),
    "GPTQ, second format": Kind("gptq", group=32, first_format=False),
    "GPTQ in 8 bits": Kind("gptq", bits=8, symmetric=True),
    "W4A16": Kind(CT, symmetric=True, dtype=BF16),
    "W4A16 with zero points": Kind(CT, group=32, dtype=BF16),
    "W4A16 by channel": Kind(CT, group=-1, symmetric=True, dtype=BF16),
    "W4A16 in order of activations": Kind(CT, group=64, symmetric=True, ordered=True, dtype=BF16),
    "W8A16": Kind(CT, bits=8, group=-1, symmetric=True, dtype=BF16),
    "W8A8": Kind(CT, bits=8, group=-1, symmetric=True, packed=False, dtype=BF16),
}
# The library has read no orders of inputs since 0.15; its earlier files have them.
OF_LIBRARY = [name for name, kind in KINDS.items() if kind.method == CT and not kind.ordered]
ROUNDING = 2.0**-11  # of a float16
Written = tuple[Path, Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    def write(name: str) -> Written:
        return write_quantized(random_model("LlamaConfig", **SHAPE), tmp_path_factory.mktemp("files"), KINDS[name])

    return cache(write)


def exact_weight(module: Any) -> torch.Tensor:
    """(out_features, in_features), as the kernels multiply it."""
    linear = module.joined.linear if isinstance(module, LinearPart) else getattr(module, "linear", module)
    assert isinstance(linear.packed, GroupedWeight)
    rows = linear.packed.exact_rows(torch.arange(linear.out_features))
    if isinstance(module, LinearPart):
        rows = module.joined.split(rows, dim=0)[module.index]
    return rows[:, module._order.argsort()] if isinstance(module, ReorderedLinear) else rows


@pytest.mark.parametrize("name", KINDS)
def test_packed_weights_are_those_of_the_checkpoint(name: str, written: Callable[[str], Written]) -> None:
    """Exactly, if all zero points are the middle of the range; else to within what a float16 rounds of an offset.

    An offset is a scale times a zero point less the middle, so at most as many scales as the middle is.
    """
    packed, plain = written(name)
    model: Any = load_causal_lm(engine_config(packed, dtype="bfloat16"), CPU)
    twin: Any = load_causal_lm(engine_config(plain), CPU)
    kind, checked, stored = KINDS[name], 0, load_file(packed / "model.safetensors")
    for where, module in model.named_modules():
        if not isinstance(module, NativeLinear | ReorderedLinear | LinearPart) or where.endswith(".linear"):
            continue
        found = exact_weight(module)
        exact = twin.get_submodule(where).weight
        scales = next(stored[f"{where}.{last}"] for last in ("scales", "weight_scale") if f"{where}.{last}" in stored)
        bound = 0.0 if kind.symmetric else ROUNDING * (1 << (kind.bits - 1)) * float(scales.max())
        assert float((found - exact).abs().max()) <= bound
        checked += 1
    assert checked == 7 * SHAPE["num_hidden_layers"]
    assert set(packed_types_of(model)) == {f"{kind.method} in {kind.bits} bits"}


@pytest.mark.parametrize("name", KINDS)
def test_packed_model_is_near_to_the_dequantized_one(name: str, written: Callable[[str], Written]) -> None:
    """Rows rounded to 8 bits put logits off by less than twice what bfloat16 does, whose numbers have 8 bits."""
    packed, plain = written(name)
    _, exact = logits_of(plain)
    twin, rounded = logits_of(packed, dtype="bfloat16", quantization="none")
    _, logits = logits_of(packed, dtype="bfloat16")
    assert packed_types_of(twin) == {}
    assert not any(isinstance(module, NativeLinear) for module in twin.modules())
    assert 0 < off(logits, exact) < 2 * off(rounded, exact)
    assert float((logits.argmax(dim=1) == exact.argmax(dim=1)).float().mean()) >= 0.9


@pytest.mark.parametrize("name", KINDS)
def test_without_packing_a_checkpoint_is_its_dequantized_twin(name: str, written: Callable[[str], Written]) -> None:
    packed, plain = written(name)
    _, exact = logits_of(plain)
    _, logits = logits_of(packed, quantization="none")
    assert torch.equal(logits, exact)


@pytest.mark.parametrize("name", ["AWQ", "GPTQ in order of activations", "W4A16", "W8A8"])
def test_tokens_do_not_depend_on_what_shares_the_batch(name: str, written: Callable[[str], Written]) -> None:
    config = engine_config(written(name)[0], dtype="bfloat16", max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    executor = build_executor(config)
    rng = random.Random(name)
    cases = greedy_cases(rng, 8) + sampled_cases(rng, 4)
    serve_together_and_alone(executor, cases, rng)


@pytest.mark.skipif(not HAS_LAYERS, reason="there are no native layers here")
@pytest.mark.parametrize(
    ("name", "count"), [("AWQ", 2), ("W4A16", 2), ("W8A8", 2), ("GPTQ in order of activations", 0)]
)
def test_layers_are_native_where_inputs_are_in_their_order(
    name: str, count: int, written: Callable[[str], Written]
) -> None:
    info, runner = build_executor(engine_config(written(name)[0], dtype="bfloat16"))
    assert num_native_layers(runner._model.causal_lm) == count
    assert info.packed_types
    twin, _ = build_executor(engine_config(written(name)[1], dtype="bfloat16"))
    assert info.num_parameters == twin.num_parameters
    head = 2 * 320 * SHAPE["hidden_size"] * 2  # with the embedding
    bits = {4: 5.0, 8: 8.5}[KINDS[name].bits]
    assert info.weight_bytes - head < (twin.weight_bytes - head) * bits / 16 * 1.02


def test_quantization_at_load_begins_with_dequantized_weights(written: Callable[[str], Written]) -> None:
    info, _ = build_executor(engine_config(written("AWQ")[0], dtype="bfloat16", quantization="int8"))
    assert (info.quantization, info.packed_types) == ("int8", {})


def test_without_kernels_weights_are_dequantized(
    written: Callable[[str], Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "load_library", lambda: None)
    packed, plain = written("AWQ")
    model, logits = logits_of(packed)
    assert packed_types_of(model) == {}
    assert torch.equal(logits, logits_of(plain)[1])


def test_scales_that_float16_cannot_hold_are_dequantized(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("LlamaConfig", **SHAPE)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e-6)
    packed, plain = write_quantized(model, tmp_path, KINDS["W8A16"])
    found, logits = logits_of(packed, dtype="bfloat16")
    assert "1 weights of the checkpoint are dequantized: a scale is beyond float16" in caplog.messages
    assert type(found.model.layers[0].mlp.down_proj) is nn.Linear
    assert isinstance(found.model.layers[1].mlp.down_proj, NativeLinear)
    assert off(logits, logits_of(plain)[1]) < 0.1


def test_biases_of_zeros_that_the_model_does_not_have_are_passed_over(tmp_path: Path) -> None:
    packed, plain = write_quantized(random_model("LlamaConfig", **SHAPE), tmp_path, KINDS["GPTQ"])
    file = packed / "model.safetensors"
    tensors = load_file(file)
    tensors |= {
        name.replace("scales", "bias"): torch.zeros(scales.shape[1], dtype=torch.float16)
        for name, scales in tensors.items()
        if name.endswith(".scales")
    }
    save_file(tensors, file)
    model, logits = logits_of(packed, dtype="bfloat16")
    assert packed_types_of(model)
    assert off(logits, logits_of(plain)[1]) < 0.1


def test_kinds_that_are_not_known_are_left_to_transformers(tmp_path: Path) -> None:
    packed, _ = write_quantized(random_model("LlamaConfig", **SHAPE), tmp_path, KINDS["AWQ"])
    set_config(packed, quantization_config=KINDS["AWQ"].settings | {"version": "gemv"})
    with pytest.raises(ModelLoadError, match="gptqmodel"):
        load_causal_lm(engine_config(packed), CPU)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("name", OF_LIBRARY)
def test_compressed_tensors_reads_the_same_weights(name: str, written: Callable[[str], Written]) -> None:
    """What was written value by value is what the format's own library makes of it."""
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    packed = written(name)[0]
    config = CompressedTensorsConfig(**KINDS[name].settings, dequantize=True)
    theirs: Any = AutoModelForCausalLM.from_pretrained(packed, quantization_config=config, dtype=torch.float32)
    ours: Any = load_causal_lm(engine_config(packed, quantization="none"), CPU)
    for where, weight in ours.state_dict().items():
        assert torch.allclose(theirs.state_dict()[where], weight, rtol=2**-7, atol=1e-6)


def test_8_bit_floats_in_blocks_are_dequantized(tmp_path: Path) -> None:
    """As transformers does it where there is no GPU."""
    model = random_model("LlamaConfig", **SHAPE)
    tensors: dict[str, Tensor] = {}
    twin: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        tensors[name] = twin[name] = weight
        if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
            blocks = weight.view(weight.shape[0] // 128, 128, -1, 128)
            scales = blocks.abs().amax((1, 3)) / 448
            values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            tensors[name], tensors[f"{name}_scale_inv"] = values.view(weight.shape), scales
            twin[name] = (values.float() * scales[:, None, :, None]).view(weight.shape)
    model.config.save_pretrained(tmp_path / "packed")
    save_file(tensors, tmp_path / "packed" / "model.safetensors")
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    set_config(tmp_path / "packed", quantization_config=settings)
    model.save_pretrained(tmp_path / "plain", state_dict=twin)
    assert torch.equal(logits_of(tmp_path / "packed")[1], logits_of(tmp_path / "plain")[1])


def test_8_bit_floats_by_channel_are_dequantized(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("LlamaConfig", **SHAPE)
    tensors: dict[str, Tensor] = {}
    twin: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        tensors[name] = twin[name] = weight
        if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
            scales = weight.abs().amax(1, keepdim=True) / 448
            tensors[name], tensors[f"{name}_scale"] = (weight / scales).to(torch.float8_e4m3fn), scales
            tensors[name.replace("weight", "input_scale")] = torch.ones(1)
            twin[name] = tensors[name].float() * scales
    model.config.save_pretrained(tmp_path / "packed")
    save_file(tensors, tmp_path / "packed" / "model.safetensors")
    settings = KINDS["W8A8"].settings | {"format": "float-quantized"}
    set_config(tmp_path / "packed", quantization_config=settings)
    model.save_pretrained(tmp_path / "plain", state_dict=twin)
    assert torch.equal(logits_of(tmp_path / "packed")[1], logits_of(tmp_path / "plain")[1])
    assert "14 weights of the checkpoint are dequantized: floats of 8 bits" in caplog.messages
