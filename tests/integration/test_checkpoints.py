"""Weights from files: what is read without transformers' own loading equals what that loads, in less memory."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models import loader as model_loader
from orcinus.engine.models.gguf_file import read_gguf_weights
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.startup.build import build_executor
from tests.effort import slow_but_for
from tests.integration.gguf_files import Q, write_gguf
from tests.integration.test_model_loader import CPU, PROMPT, greedy
from tests.integration.tiny_models import CONTEXT, FAMILIES, build_model, engine_config, random_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return build_model("llama", tmp_path / "llama")


def tiny(family: str) -> Any:
    class_name, settings = FAMILIES[family]
    return random_model(class_name, **settings)


def assert_same_model(read: Any, loaded: Any) -> None:
    assert read.state_dict().keys() == loaded.state_dict().keys()
    for (name, a), b in zip(read.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name
    for (name, a), b in zip(read.named_buffers(), loaded.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert read.generation_config.to_dict() == loaded.generation_config.to_dict()


def both_ways(model: Path, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> tuple[Any, Any]:
    """The model as it is read here, without `from_pretrained`, and as that loads it."""
    with monkeypatch.context() as patch:
        patch.setattr(model_loader, "_from_pretrained", None)
        read = load_causal_lm(engine_config(model, **overrides), CPU)
    monkeypatch.setattr(model_loader, "read_checkpoint", lambda *_: None)
    return read, load_causal_lm(engine_config(model, **overrides), CPU)


@pytest.mark.parametrize("dtype", slow_but_for(["float32", "bfloat16", "float16"], "bfloat16"))
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_sharded", [False, True], ids=["one file", "several"])
def test_plain_checkpoint_is_read_as_from_pretrained_loads_it(
    is_sharded: bool, stored: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_name, settings = FAMILIES["llama"]
    model = random_model(class_name, stored, **settings)
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.save_pretrained(tmp_path, max_shard_size="100KB" if is_sharded else "1GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is is_sharded
    assert_same_model(*both_ways(tmp_path, monkeypatch, dtype=dtype))


def test_weights_of_the_models_own_dtype_are_mapped(llama: Path) -> None:
    causal_lm = load_causal_lm(engine_config(llama), CPU)
    (file,) = llama.glob("*.safetensors")
    mapped = [line.split("-") for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    ranges = [(int(low, 16), int(rest.split()[0], 16)) for low, rest, *_ in mapped]
    for name, weight in causal_lm.named_parameters():
        assert any(low <= weight.data_ptr() < high for low, high in ranges), name


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    directory = build_model("llama", tmp_path, tie_word_embeddings=True)
    causal_lm = load_causal_lm(engine_config(directory), CPU)
    assert causal_lm.lm_head.weight is causal_lm.model.embed_tokens.weight


def test_several_files_load_like_one(tmp_path: Path, llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    whole = greedy(build_executor(engine_config(llama))[1], PROMPT)
    assert greedy(build_executor(engine_config(tmp_path / "parts"))[1], PROMPT) == whole


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"model.norm.weight": "absent.safetensors"}}'])
def test_index_that_names_no_files_is_refused(index: str, tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelLoadError, match="cannot load"):
        load_causal_lm(engine_config(tmp_path), CPU)


def test_gguf_file_is_served(tmp_path: Path, llama: Path) -> None:
    file = write_gguf(tiny("llama"), tmp_path / "llama.gguf")
    info, runner = build_executor(engine_config(file))
    assert info.architecture == "LlamaForCausalLM"
    assert info.max_model_len == CONTEXT
    assert greedy(runner, PROMPT) == greedy(build_executor(engine_config(llama))[1], PROMPT)


@pytest.mark.parametrize("dtype", slow_but_for(["float32", "bfloat16"], "bfloat16"))
@pytest.mark.parametrize(
    ("family", "architecture", "quantization"),
    [
        ("llama", "llama", Q.F32),
        ("llama", "llama", Q.F16),
        ("llama", "llama", Q.Q8_0),
        ("qwen3_moe", "qwen3moe", Q.F32),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_gguf_file_is_read_as_from_pretrained_dequantizes_it(
    family: str, architecture: str, quantization: Any, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_name, settings = FAMILIES[family]
    sizes = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 768}  # the last is not in the file
    model = random_model(class_name, **settings | sizes)
    file = write_gguf(model, tmp_path / "model.gguf", architecture, quantization)
    read, loaded = both_ways(file, monkeypatch, dtype=dtype, quantization="none")
    assert_same_model(read, loaded)
    assert {weight.is_contiguous() for weight in read.parameters()} == {True}
    if quantization is Q.F32 and dtype == "float32":
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, read.state_dict()[name]), name


def test_experts_that_are_put_together_are_no_wider_than_the_rest(tmp_path: Path) -> None:
    model = tiny("qwen3_moe")
    file = write_gguf(model, tmp_path / "model.gguf", "qwen3moe")
    weights = read_gguf_weights(file, model, torch.bfloat16)
    assert weights.keys() == model.state_dict().keys()
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_loading_a_gguf_file_says_nothing_and_gives_no_advice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tiny("llama"), tmp_path / "llama.gguf", quantization=Q.F16)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(handler)
    try:
        load_causal_lm(engine_config(file, dtype="bfloat16"), CPU)
        assert capfd.readouterr() == ("", "")
        monkeypatch.setattr(model_loader, "read_checkpoint", lambda *_: None)
        load_causal_lm(engine_config(file, dtype="bfloat16"), CPU)
    finally:
        transformers_logger.removeHandler(handler)
    assert said == []
    assert caplog.text == ""


def test_gguf_file_of_an_architecture_without_names_here_is_left_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tiny("llama"), tmp_path / "llama.gguf")
    monkeypatch.setattr(gguf, "MODEL_ARCH_NAMES", {})
    with pytest.raises(ModelLoadError, match="Unknown gguf model_type"):
        load_causal_lm(engine_config(file), CPU)


RESIDENT = """
import json, os, sys, psutil
from pathlib import Path
from orcinus.engine.platform.lean_imports import import_transformers
import_transformers()
from orcinus.engine.startup.build import build_executor
from tests.integration.tiny_models import engine_config
info, runner = build_executor(
    engine_config(Path(sys.argv[1]), dtype="bfloat16", kv_cache_memory=1 << 20, quantization=sys.argv[2] or None)
)
memory = {line.split(":")[0]: int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("Vm")}
print(json.dumps([info.num_parameters, memory["VmRSS"], memory["VmHWM"]]), flush=True)
os._exit(0)
"""


def resident_kib(model: Path, quantization: str = "") -> tuple[int, int, int]:
    """Parameters, and the resident memory of an engine that has loaded them: now, and at most."""
    command = [sys.executable, "-c", RESIDENT, str(model), quantization]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    parameters, now, most = json.loads(done.stdout.splitlines()[-1])
    return parameters, now, most


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_converted_and_dequantized_weights_take_the_memory_of_plain_ones(tmp_path: Path) -> None:
    """A second copy of these weights would be 0.2 GB, of 0.5 in all."""
    settings: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 14,
        "num_attention_heads": 12,
    }
    model = random_model("LlamaConfig", "bfloat16", num_key_value_heads=12, head_dim=64, **settings)
    model.save_pretrained(tmp_path / "plain")
    model.half().save_pretrained(tmp_path / "half")
    parameters, plain, _ = resident_kib(tmp_path / "plain")
    assert parameters > 95e6
    gguf_file = write_gguf(model, tmp_path / "q8_0.gguf", quantization=Q.Q8_0)
    for other in (gguf_file, tmp_path / "half"):
        _, now, most = resident_kib(other, "none")
        assert now < 1.2 * plain, other.name
        assert most < 1.2 * plain, other.name
    if load_library() is not None:  # 8.5 bits in place of 16, and never more than a few rows of anything else
        _, now, most = resident_kib(gguf_file)
        saved = parameters * 2 * (16 - 8.5) / 16 / 1024
        assert now < plain - 0.7 * saved
        assert most < plain - 0.4 * saved
