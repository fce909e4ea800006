"""Weights that were quantized at load and kept: the next start maps them, and serves the same tokens."""

import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orcinus.engine.cpu import native_linear
from orcinus.engine.cpu.decoder_layers import NativeDecoder, num_native_layers
from orcinus.engine.cpu.grouped_weight import GroupedWeight
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library, use_kernels
from orcinus.engine.messages import EngineInfo
from orcinus.engine.platform import tensor_cache
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.startup import packed_weights
from orcinus.engine.startup.build import build_executor
from orcinus.engine.startup.determinism import settle_determinism
from orcinus.engine.startup.packed_weights import KeptWeights
from tests.integration.gguf_files import Q, write_gguf
from tests.integration.mtp_models import build_mtp_model
from tests.integration.quantized_files import Kind, write_quantized
from tests.integration.test_gguf_heads import write as write_with_head
from tests.integration.test_gguf_in_blocks import K_MIX
from tests.integration.test_gguf_in_blocks import SHAPE as GROUPED_SHAPE
from tests.integration.test_int8 import greedy_cases
from tests.integration.tiny_models import build_model, engine_config, random_model
from tests.integration.truth import BLOCK_SIZE, MAX_MODEL_LEN, core_with_few_blocks, sampled_cases, serve

LIBRARY = load_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="there is no library here")
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
Executor = tuple[EngineInfo, ModelRunner]


@pytest.fixture(autouse=True)
def small_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they have been written when a start returns."""
    monkeypatch.setattr(packed_weights, "_LEAST_BYTES", 0)
    monkeypatch.setattr(tensor_cache, "_SPARE_BYTES", 0)
    monkeypatch.setattr(tensor_cache, "_IN_MEMORY", ())  # as directories of tests may lie there
    keep = KeptWeights.keep

    def and_wait(kept: KeptWeights, served: Any) -> threading.Thread | None:
        writing = keep(kept, served)
        if writing is not None:
            writing.join()
        return writing

    monkeypatch.setattr(KeptWeights, "keep", and_wait)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def build(family: str, **settings: Any) -> Path:
        shape = {} if family in ("gpt2", "deepseek_v3") else SHAPE
        directory = build_model(family, tmp_path_factory.mktemp(family), **shape | settings)
        from transformers import AutoModelForCausalLM

        plain: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        plain.save_pretrained(directory)
        return directory

    return cache(build)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the shapes of the plain weights that are packed from now on."""
    shapes: list[tuple[int, int]] = []
    pack = native_linear.packed_weight

    def and_note(library: Any, kind: Any, weights: Any, biases: Any, **options: Any) -> Any:
        shapes.extend(tuple(weight.shape) for weight in weights)
        return pack(library, kind, weights, biases, **options)

    monkeypatch.setattr(native_linear, "packed_weight", and_note)
    monkeypatch.setattr("orcinus.engine.cpu.decoder_layers.packed_weight", and_note)
    return shapes


def start(model: Path, directory: Path | None, quantization: str | None = "int8", **settings: Any) -> Executor:
    settings = {"dtype": "bfloat16", "max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_SIZE} | settings
    kept = None if directory is None else str(directory)
    return build_executor(engine_config(model, quantization=quantization, packed_weights_dir=kept, **settings))


def answers(executor: Executor) -> list[tuple[int, ...]]:
    rng = random.Random(7)
    cases = greedy_cases(rng, 4) + sampled_cases(rng, 2)
    outcomes = serve(core_with_few_blocks(executor), cases, rng, "request").outcomes
    assert not any(outcome.error for outcome in outcomes)
    return [tuple(outcome.token_ids) for outcome in outcomes]


ARMS = [
    ("llama", "int8", {}),
    ("llama", "int4", {}),
    ("llama", "int4", {"tie_word_embeddings": True}),
    ("llama", "int8", {"tie_word_embeddings": True}),
    ("qwen2", "int4", {}),
    ("gemma2", "int8", {}),
    ("gpt2", "int4", {}),
    ("phi3", "int8", {}),
    ("qwen3_moe", "int4", {}),
    ("qwen3_5", "int8", {}),
    ("lfm2", "int4", {}),
]


@pytest.mark.parametrize(("family", "quantization", "settings"), ARMS)
def test_second_start_packs_nothing_and_serves_the_same(
    family: str,
    quantization: str,
    settings: dict[str, Any],
    model_of: Callable[..., Path],
    tmp_path: Path,
    packed: list[tuple[int, int]],
) -> None:
    model = model_of(family, **settings)
    first = start(model, tmp_path, quantization)
    wanted = answers(first)
    assert packed
    (file,) = tmp_path.iterdir()
    packed.clear()
    second = start(model, tmp_path, quantization)
    assert packed == []
    assert answers(second) == wanted
    assert second[0].num_parameters == first[0].num_parameters
    assert second[0].weight_bytes == first[0].weight_bytes
    assert second[0].is_deterministic == first[0].is_deterministic
    layers = [num_native_layers(executor[1]._model.causal_lm) for executor in (first, second)]
    assert layers[0] == layers[1]
    assert list(tmp_path.iterdir()) == [file]


FILES: dict[str, Any] = {
    "Q4_0": {"quantization": Q.Q4_0},
    "Q4_K_M": {"blocks": K_MIX, "tie_word_embeddings": True},
    "biases": {"quantization": Q.Q8_0, "architecture": "qwen2"},
    "AWQ": Kind("awq"),
    "GPTQ in order of activations": Kind("gptq", ordered=True),
}


@pytest.fixture(scope="module")
def in_groups(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a checkpoint that has its weights in groups."""

    def write(name: str) -> Path:
        directory, kind = tmp_path_factory.mktemp("groups"), FILES[name]
        if isinstance(kind, Kind):
            return write_quantized(random_model("LlamaConfig", **GROUPED_SHAPE), directory, kind)[0]
        given = dict(kind)
        architecture, tied = given.pop("architecture", "llama"), given.pop("tie_word_embeddings", False)
        config = {"llama": "LlamaConfig", "qwen2": "Qwen2Config"}[architecture]
        model = random_model(config, **GROUPED_SHAPE, tie_word_embeddings=tied)
        return write_gguf(model, directory / "model.gguf", architecture, **given)

    return cache(write)


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> list[GroupedWeight]:
    """Return the weights in groups that are packed from now on."""
    made: list[GroupedWeight] = []
    pack = GroupedWeight.__init__

    def and_note(weight: GroupedWeight, *args: Any, **options: Any) -> None:
        made.append(weight)
        pack(weight, *args, **options)

    monkeypatch.setattr(GroupedWeight, "__init__", and_note)
    return made


@pytest.mark.parametrize("name", FILES)
def test_second_start_of_what_is_in_groups_packs_nothing_and_serves_the_same(
    name: str, in_groups: Callable[[str], Path], tmp_path: Path, grouped: list[GroupedWeight]
) -> None:
    model = in_groups(name)
    first = start(model, tmp_path, None)
    wanted = answers(first)
    assert grouped
    (file,) = tmp_path.iterdir()
    grouped.clear()
    second = start(model, tmp_path, None)
    assert grouped == []
    assert answers(second) == wanted
    for told in ("num_parameters", "weight_bytes", "packed_types", "is_deterministic"):
        assert getattr(second[0], told) == getattr(first[0], told)
    layers = [num_native_layers(executor[1]._model.causal_lm) for executor in (first, second)]
    assert layers[0] == layers[1]
    assert list(tmp_path.iterdir()) == [file]


def test_a_head_in_groups_is_not_taken_for_the_layer_that_it_is_like(
    tmp_path: Path, grouped: list[GroupedWeight]
) -> None:
    checkpoint = build_mtp_model("llama", tmp_path / "checkpoint", **SHAPE)
    file = write_with_head(checkpoint, tmp_path / "model.gguf", "llama", Q.Q8_0)
    first = start(file, tmp_path / "kept", None, speculation="mtp")
    wanted, heads = answers(first), [head_panels(first)]
    grouped.clear()
    second = start(file, tmp_path / "kept", None, speculation="mtp")
    assert grouped == []
    assert answers(second) == wanted
    heads.append(head_panels(second))
    assert len(heads[0]) == len(heads[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*heads, strict=True))


def head_panels(executor: Executor) -> list[Tensor]:
    """Return what is packed of a model's head."""
    head = executor[1]._model.mtp_head
    assert head is not None
    decoders = [module for module in head.modules() if isinstance(module, NativeDecoder)]
    return [weight.tensors["panels"] for decoder in decoders for weight in decoder.layers[0].weights]


def test_another_file_of_the_same_name_is_packed_anew(
    in_groups: Callable[[str], Path], tmp_path: Path, grouped: list[GroupedWeight]
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(in_groups("Q4_0").read_bytes())
    start(file, tmp_path / "kept", None)
    times = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # of a file so small all is looked at
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    grouped.clear()
    start(file, tmp_path / "kept", None)
    assert grouped


@pytest.mark.parametrize("broken", ["no config.json", "no file", "no name of the hub"])
def test_what_cannot_be_loaded_is_refused_as_ever(
    broken: str, model_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights = tmp_path / "weights"
    shutil.copytree(model_of("llama"), weights)
    (weights / "config.json").unlink()
    models = {
        "no config.json": weights,
        "no file": tmp_path / "none.gguf",
        "no name of the hub": Path("a--b..c/d.gguf"),
    }
    told = []
    for kept in (None, tmp_path / "kept"):
        with pytest.raises(ModelLoadError) as refused:
            start(models[broken], kept, None)
        told.append(str(refused.value))
    assert told[0] == told[1]


def test_plain_weights_are_not_kept_and_neither_are_dequantized_ones(
    model_of: Callable[..., Path], in_groups: Callable[[str], Path], tmp_path: Path
) -> None:
    start(model_of("llama"), tmp_path, None)
    start(in_groups("Q4_0"), tmp_path, "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kernels", ["generic", "avx2", "avx512"])
def test_other_kernels_have_weights_of_their_own(
    kernels: str, model_of: Callable[..., Path], tmp_path: Path, packed: list[tuple[int, int]]
) -> None:
    model = model_of("llama")
    start(model, tmp_path, "int4")
    best = kernels_in_use()
    use_kernels(kernels)
    are_others = kernels_in_use() != best
    try:
        wanted = answers(start(model, tmp_path, "int4"))
        packed.clear()
        assert answers(start(model, tmp_path, "int4")) == wanted
        assert packed == []
    finally:
        use_kernels("amx")
    assert len(list(tmp_path.iterdir())) == 1 + are_others


def kernels_in_use() -> tuple[object, ...]:
    library = load_library()
    assert library is not None
    return library.instruction_set, library.grouped_kernel, library.has_matrix_units


def test_weights_in_another_arrangement_are_multiplied_as_they_are(
    model_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: list[tuple[int, int]]
) -> None:
    """They are rounded once: no native layer packs anew what has been packed for others."""
    monkeypatch.setattr(packed_weights, "_key", lambda *_: "key")
    model = model_of("llama")
    use_kernels("generic")  # without native layers
    try:
        first: Any = start(model, tmp_path, "int4")[1]._model.causal_lm
    finally:
        use_kernels("amx")
    packed.clear()
    executor = start(model, tmp_path, "int4")
    second: Any = executor[1]._model.causal_lm
    assert packed == []
    assert num_native_layers(second) == 0
    for name in ("self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"):
        weights = [lm.get_submodule(f"model.layers.1.{name}").weight for lm in (first, second)]
        assert torch.equal(*weights)
    assert len(answers(executor)) == 6


def test_checkpoint_in_float32_is_kept_too(
    model_of: Callable[..., Path], tmp_path: Path, packed: list[tuple[int, int]]
) -> None:
    model = model_of("llama")
    wanted = answers(start(model, tmp_path, "int4", dtype="float32"))
    packed.clear()
    assert answers(start(model, tmp_path, "int4", dtype="float32")) == wanted
    assert packed == []


def test_weights_are_packed_once_on_the_first_start(
    model_of: Callable[..., Path], packed: list[tuple[int, int]]
) -> None:
    """Their own code multiplies with what the native layers have, when both are compared."""
    model = model_of("llama")
    for quantization in ("int8", "int4"):
        packed.clear()
        info, _ = start(model, None, quantization)
        embedding = 320 * SHAPE["hidden_size"]
        assert sum(rows * columns for rows, columns in packed) <= info.num_parameters - embedding


def test_another_checkpoint_at_the_same_path_is_packed_anew(tmp_path: Path, packed: list[tuple[int, int]]) -> None:
    """With files of the same names, sizes and times."""
    from safetensors.torch import load_file, save_file

    model, kept = build_model("llama", tmp_path / "model", **SHAPE), tmp_path / "kept"
    first = answers(start(model, kept))
    file = model / "model.safetensors"
    times = file.stat()
    weights = load_file(file)
    save_file({name: -weight for name, weight in weights.items()}, file, {"format": "pt"})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    packed.clear()
    assert answers(start(model, kept)) != first
    assert packed
    assert len(list(kept.iterdir())) == 2


def changed_in_the_middle(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-64])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def changed_in_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'\\"int8\\"', b'\\"int4\\"', 1))


@pytest.mark.parametrize("damage", [changed_in_the_middle, cut, emptied, changed_in_the_header])
def test_damaged_file_is_told_and_written_again(
    damage: Callable[[Path], None],
    model_of: Callable[..., Path],
    tmp_path: Path,
    packed: list[tuple[int, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = model_of("llama")
    wanted = answers(start(model, tmp_path))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    damage(file)
    packed.clear()
    assert answers(start(model, tmp_path)) == wanted
    assert packed
    assert any("packed weights that were kept are not used" in message for message in caplog.messages)
    assert file.read_bytes() == whole


def test_file_that_is_of_another_model_is_not_used(
    model_of: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole, and under the key of this one."""
    model = model_of("llama")
    wanted = answers(start(model, tmp_path / "a"))
    start(model_of("llama", num_hidden_layers=4), tmp_path / "b")
    (own,), (other,) = (list((tmp_path / name).iterdir()) for name in "ab")
    key = own.stem
    found = tensor_cache.TensorCache(tmp_path / "b").read(other.stem)
    assert found is not None
    tensor_cache.TensorCache(tmp_path / "a").write(key, found.tensors, found.description)
    assert answers(start(model, tmp_path / "a")) == wanted
    assert any("there is no linear layer" in message for message in caplog.messages)


@pytest.mark.parametrize("obstacle", ["a file", "read-only", "full"])
def test_where_nothing_can_be_kept_the_start_goes_on(
    obstacle: str,
    model_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = tmp_path / "kept"
    if obstacle == "a file":
        directory.touch()
    elif obstacle == "read-only":
        monkeypatch.setattr(os, "open", refuse(PermissionError(30, "Read-only file system")))
    else:
        monkeypatch.setattr(os, "write", refuse(OSError(28, "No space left on device")))
    model = model_of("llama")
    assert answers(start(model, directory)) == answers(start(model, None))
    assert any("packed weights are not kept in" in message for message in caplog.messages)
    assert directory.is_file() or list(directory.iterdir()) == []


def refuse(error: OSError) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_nothing_is_kept_of_what_is_not_quantized_here(model_of: Callable[..., Path], tmp_path: Path) -> None:
    build_executor(engine_config(model_of("llama"), dtype="bfloat16", packed_weights_dir=str(tmp_path)))
    start(model_of("deepseek_v3"), tmp_path)  # its latents are made of plain weights
    assert list(tmp_path.iterdir()) == []


def test_kept_weights_are_mapped(model_of: Callable[..., Path], tmp_path: Path) -> None:
    """So that engines beside each other share them."""
    model = model_of("llama")
    start(model, tmp_path)
    (file,) = tmp_path.iterdir()
    second = start(model, tmp_path)
    assert num_native_layers(second[1]._model.causal_lm) in (0, 3)
    assert str(file) in Path("/proc/self/maps").read_text()


@torch.inference_mode()
def test_logits_are_the_same_to_the_last_bit(model_of: Callable[..., Path], tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def and_note(served: Any, setting: Any, logits: Tensor, block_size: int) -> Any:
        seen.append(logits)
        return settle_determinism(served, setting, logits, block_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orcinus.engine.startup.build.settle_determinism", and_note)
        for _ in range(2):
            start(model_of("qwen3"), tmp_path, "int4")
    assert torch.equal(*seen)


def test_description_is_plain_json(model_of: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors import safe_open

    start(model_of("llama"), tmp_path)
    (file,) = tmp_path.iterdir()
    with safe_open(file, framework="pt") as opened:
        told = json.loads(opened.metadata()["told"])
        assert set(told["entries"]) == set(opened.keys())
    assert {name for product in told["description"] for name, _ in product["sources"]} >= {"lm_head"}
