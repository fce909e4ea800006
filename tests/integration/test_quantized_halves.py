"""Multimodal checkpoints that are quantized, served by their language model: multiplied as they are, without towers."""

import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models import loader
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.models.packed_types import packed_types_of
from orcinus.engine.models.text_half import text_half_of
from orcinus.engine.startup.build import build_executor
from tests.effort import slow_but_for
from tests.integration.quantized_files import Kind, write_quantized
from tests.integration.test_gguf_families import typically_off
from tests.integration.test_gguf_in_blocks import logits_of
from tests.integration.test_int8 import greedy_cases
from tests.integration.test_model_loader import CPU
from tests.integration.test_text_halves import WHOLES
from tests.integration.tiny_models import engine_config, set_config
from tests.integration.truth import BLOCK_SIZE, MAX_MODEL_LEN, sampled_cases, serve_together_and_alone
from tests.models_table.shrink import tiny_config, tiny_model
from tests.models_table.trial import towers_without_timm

pytestmark = pytest.mark.skipif(load_library() is None, reason="there is no library here")

_HEADS = {"head_dim": 32, "global_head_dim": 32, "mrope_section": [4, 6, 6]}
_LINEAR_HEADS = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "hidden_size_per_layer_input": 32,
    **_HEADS,
    **_LINEAR_HEADS,
}
KINDS = {
    "AWQ": Kind("awq", group=32),
    "GPTQ": Kind("gptq", group=32, symmetric=True),
    "W4A16": Kind("compressed-tensors", group=32, symmetric=True, dtype=torch.bfloat16),
}
FAMILIES = ["gemma3", "gemma4", "mistral3", "llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"]
CASES = [(family, kind) for family in FAMILIES for kind in ("AWQ", "W4A16")] + [("qwen3_5", "GPTQ")]
Written = tuple[Path, Path]
Writer = Callable[[str, str], Written]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    def write(family: str, kind: str) -> Written:
        import transformers

        with towers_without_timm():
            model = tiny_model(getattr(transformers, WHOLES[family]), tiny_config(family, _SIZES), "float32")
        return write_quantized(model, tmp_path_factory.mktemp("files"), KINDS[kind])

    return cache(write)


@pytest.mark.parametrize("case", slow_but_for(CASES, ("gemma3", "W4A16"), ("qwen3_5_moe", "AWQ")), ids=str)
def test_language_model_is_packed_as_it_is_and_near_to_the_dequantized_one(
    case: tuple[str, str], written: Writer
) -> None:
    """A token's logits are off by three times what bfloat16 puts them off by, at most: see `test_gguf_families.py`."""
    family, kind = case
    packed, plain = written(family, kind)
    _, exact = logits_of(plain)
    twin, rounded = logits_of(packed, dtype="bfloat16", quantization="none")
    model, logits = logits_of(packed, dtype="bfloat16")
    assert text_half_of(model) == WHOLES[family]
    assert packed_types_of(twin) == {}
    assert set(packed_types_of(model)) == {f"{KINDS[kind].method} in 4 bits"}
    assert not [name for name, _ in model.named_parameters() if "vis" in name]
    assert 0 < typically_off(logits, exact) < 3 * typically_off(rounded, exact)
    assert sum(packed_types_of(model).values()) >= 0.9 * quantized_bytes(packed)


def quantized_bytes(packed: Path) -> float:
    """Return what the weights of 4 bits take without their scales."""
    tensors = load_file(packed / "model.safetensors")
    return sum(tensor.nbytes for name, tensor in tensors.items() if name.endswith(("qweight", "weight_packed")))


def test_tokens_do_not_depend_on_what_shares_the_batch(written: Writer) -> None:
    packed, _ = written("qwen3_5_moe", "AWQ")
    config = engine_config(packed, dtype="bfloat16", max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    rng = random.Random(1)
    serve_together_and_alone(build_executor(config), greedy_cases(rng, 8) + sampled_cases(rng, 4), rng)


def test_without_packing_a_checkpoint_is_its_dequantized_twin(written: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, plain = written("gemma3", "W4A16")
    _, exact = logits_of(plain)
    assert torch.equal(logits_of(packed, quantization="none")[1], exact)
    monkeypatch.setattr(loader, "load_library", lambda: None)
    assert torch.equal(logits_of(packed)[1], exact)


def test_weights_that_are_missing_are_named(written: Writer, tmp_path: Path) -> None:
    """By transformers, to which a checkpoint is left that has not all that the model wants."""
    packed, _ = written("gemma3", "W4A16")
    tensors = load_file(packed / "model.safetensors")
    for file in packed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    del tensors[next(name for name in tensors if name.endswith("layers.1.input_layernorm.weight"))]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError):
        load_causal_lm(engine_config(tmp_path), CPU)


def test_kinds_that_are_not_known_are_left_to_transformers(written: Writer, tmp_path: Path) -> None:
    packed, _ = written("gemma3", "W4A16")
    for file in packed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    set_config(tmp_path, quantization_config={"quant_method": "quark"})
    with pytest.raises(ModelLoadError, match="quark"):
        load_causal_lm(engine_config(tmp_path), CPU)


def rewritten(packed: Path, directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Return a copy of a checkpoint in which tensors were changed."""
    shutil.copytree(packed, directory)
    tensors = load_file(packed / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_settings_may_stand_in_the_text_configuration_alone(written: Writer, tmp_path: Path) -> None:
    packed, _ = written("gemma3", "AWQ")
    copy = rewritten(packed, tmp_path / "copy", lambda tensors: None)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (copy / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits_of(copy, dtype="bfloat16")[1], logits_of(packed, dtype="bfloat16")[1])


def test_tensors_that_the_language_model_has_no_place_for_are_left_out(written: Writer, tmp_path: Path) -> None:
    packed, _ = written("gemma3", "AWQ")
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"  # as older files have
    copy = rewritten(packed, tmp_path / "copy", lambda tensors: tensors.update({name: torch.ones(16)}))
    assert torch.equal(logits_of(copy, dtype="bfloat16")[1], logits_of(packed, dtype="bfloat16")[1])


def test_head_may_stand_behind_the_prefix_of_the_decoder(written: Writer, tmp_path: Path) -> None:
    packed, _ = written("qwen3_5", "AWQ")

    def move(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.language_model.lm_head.weight"] = tensors.pop("lm_head.weight")

    copy = rewritten(packed, tmp_path / "copy", move)
    assert torch.equal(logits_of(copy, dtype="bfloat16")[1], logits_of(packed, dtype="bfloat16")[1])
