"""Loading real files through transformers: what is served, what is refused, and in which words."""

import gc
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orcinus.engine.attention import choice
from orcinus.engine.attention.choice import choose_backend
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.messages import CacheGroup, EngineInfo, NewRequest, ScheduledRequest, StepPlan
from orcinus.engine.models import loader as model_loader
from orcinus.engine.models.loader import load_causal_lm, multiplies_bfloat16
from orcinus.engine.platform.device import CpuMonitor
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup import build, cpu_layout
from orcinus.engine.startup.build import build_executor
from tests.integration.gguf_files import write_gguf
from tests.integration.tiny_models import (
    CONTEXT,
    EOS_TOKEN_ID,
    VOCAB_SIZE,
    build_model,
    engine_config,
    set_config,
)

CPU = torch.device("cpu")
PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return build_model("llama", tmp_path / "llama")


def greedy(runner: ModelRunner, prompt: list[int], count: int = 6) -> list[int]:
    """A few tokens of one request, by hand-written plans."""
    new = NewRequest(
        request_id="r",
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(temperature=0, max_tokens=count),
    )
    scheduled = ScheduledRequest(
        request_id="r",
        num_computed_tokens=0,
        num_tokens=len(prompt),
        new_block_ids=[[0, 1]] * len(runner._rows.block_tables),
    )
    plan = StepPlan(scheduled=[scheduled], new_requests=[new], released=["r"])
    tokens: list[int] = []
    for i in range(count):
        tokens += runner.execute(plan).sampled_token_ids["r"]
        step = ScheduledRequest(request_id="r", num_computed_tokens=len(prompt) + i, num_tokens=1)
        plan = StepPlan(scheduled=[step])
    return tokens


def test_info_says_what_was_resolved(llama: Path) -> None:
    info, _ = build_executor(engine_config(llama, max_num_seqs=3))
    weights = sum(w.numel() for w in load_causal_lm(engine_config(llama), CPU).parameters())
    assert info == EngineInfo(
        model=str(llama),
        architecture="LlamaForCausalLM",
        num_parameters=weights,
        weight_bytes=info.weight_bytes,
        dtype="float32",
        device="cpu",
        device_name=info.device_name,
        attention_backend=choose_backend(CPU, torch.float32).name,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=[EOS_TOKEN_ID],
        max_model_len=CONTEXT,
        max_num_seqs=3,
        max_num_batched_tokens=16,
        num_kv_blocks=3 * CONTEXT // 8,
        block_size=8,
        kv_cache_bytes=3 * CONTEXT * 3 * 2 * 2 * 16 * 4,  # tokens, layers, K and V, heads, dim, bytes
        enable_prefix_caching=True,
        batching="continuous",
        load_time_s=info.load_time_s,
        cache_groups=[CacheGroup(3 * CONTEXT // 8, num_layers=3)],
        pooling="mean",
        hidden_size=48,
        kv_cache_dtype="float32",
    )
    assert info.weight_bytes >= weights * 4
    assert info.device_name
    assert info.load_time_s > 0


@pytest.mark.parametrize("has_kernels", [True, False])
def test_info_says_that_there_are_no_kernels(has_kernels: bool, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_kernels and load_library() is None:
        pytest.skip("there are none here")
    if not has_kernels:
        for module in (build, choice, cpu_layout):
            monkeypatch.setattr(module, "load_library", lambda: None)
    assert build_executor(engine_config(llama))[0].lacks_kernels is not has_kernels


def test_sampling_defaults_are_what_generation_config_sets_within_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = build_model("llama", tmp_path)
    stated = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 4.5, "repetition_penalty": 1000.0}
    (directory / "generation_config.json").write_text(json.dumps(stated))
    info, _ = build_executor(engine_config(directory))
    assert info.sampling_defaults == {"temperature": 0.6, "top_p": 0.9}
    assert "repetition_penalty must be above 0 and at most 100, got 1000" in caplog.text
    info, _ = build_executor(engine_config(directory, use_generation_config=False))
    assert info.sampling_defaults == {}


def test_dtype_auto_is_the_checkpoints_own(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory = build_model("llama", tmp_path)
    AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).save_pretrained(directory)
    expected = "bfloat16" if multiplies_bfloat16() else "float32"
    assert build_executor(engine_config(directory, dtype="auto"))[0].dtype == expected


def test_float16_checkpoint_is_not_computed_in_float16_on_a_cpu(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory = build_model("llama", tmp_path)
    AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float16).save_pretrained(directory)
    info, runner = build_executor(engine_config(directory, dtype="auto"))
    assert info.dtype == ("bfloat16" if multiplies_bfloat16() else "float32")
    assert len(greedy(runner, PROMPT)) == 6


def library(**abilities: bool) -> SimpleNamespace:
    """One that can do so much."""
    return SimpleNamespace(use_threads=lambda *_args, **_given: None, **abilities)


@pytest.mark.parametrize("has_bfloat16", [True, False])
@pytest.mark.parametrize("has_kernels", [True, False])
def test_dtype_follows_what_the_cpu_computes_well(
    has_bfloat16: bool, has_kernels: bool, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loader, "cpu_has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(model_loader, "load_library", lambda: library(has_plain_linear=has_kernels))
    set_config(llama, dtype="float16")
    causal_lm = load_causal_lm(engine_config(llama, dtype="auto"), CPU)
    assert causal_lm.dtype == (torch.bfloat16 if has_bfloat16 or has_kernels else torch.float32)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_experts_that_torch_multiplies_are_in_float32_where_only_our_kernels_widen(
    has_bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loader, "cpu_has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(model_loader, "load_library", lambda: library(has_plain_linear=True))
    mixtral = build_model("mixtral", tmp_path / "mixtral")
    set_config(mixtral, dtype="bfloat16")
    causal_lm = load_causal_lm(engine_config(mixtral, dtype="auto"), CPU)
    assert causal_lm.dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)


def test_explicit_float16_on_a_cpu_is_honoured_with_a_warning(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_causal_lm(engine_config(llama, dtype="float16"), CPU).dtype == torch.float16
    assert "slow" in caplog.text


def refusal(model: Path | str, **overrides: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        build_executor(engine_config(Path(model), **overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_directory_is_named(tmp_path: Path) -> None:
    assert "nowhere: no such directory" in refusal(tmp_path / "nowhere")
    assert "no GGUF file" in refusal(tmp_path / "nowhere.gguf")


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "neither" in refusal(tmp_path / "notes.txt")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    assert "broken.gguf" in refusal(tmp_path / "broken.gguf")


def test_directory_without_config_is_refused(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path)


def test_config_that_is_no_json_is_refused(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    assert str(llama) in refusal(llama)


def test_pickled_weights_are_refused(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    message = refusal(llama)
    assert "no .safetensors" in message
    assert "pickles" in message


def test_truncated_weights_are_refused(llama: Path) -> None:
    data = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert str(llama) in refusal(llama)


def test_checkpoint_that_lacks_weights_is_refused(llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(llama / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    message = refusal(llama)
    assert "lacks 1 of" in message
    assert "layers.1.mlp.up_proj" in message


def write_config(directory: Path, class_name: str, architecture: str, **settings: Any) -> Path:
    """A checkpoint of a kind that is refused by its configuration, before any weight is read."""
    import transformers

    config = getattr(transformers, class_name)(**settings)
    config.architectures = [architecture]
    config.save_pretrained(directory)
    (directory / "model.safetensors").write_bytes(b"")
    return directory


@pytest.mark.parametrize(
    ("class_name", "architecture", "reason"),
    [
        ("T5Config", "T5ForConditionalGeneration", "encoder-decoder"),
        ("MarianConfig", "MarianForCausalLM", "encoder-decoder"),
        ("RwkvConfig", "RwkvForCausalLM", "recurrent state|layers of type"),
        ("RecurrentGemmaConfig", "RecurrentGemmaForCausalLM", "recurrent state|layers of type"),
        ("MiniMaxConfig", "MiniMaxForCausalLM", "layers of type linear_attention"),
        ("BloomConfig", "BloomForCausalLM", "attention interface"),
        ("LlamaConfig", "LlamaForSequenceClassification", "not a causal language model"),
        ("T5Config", "T5Model", "not a causal language model"),
        ("BertConfig", "BertForMaskedLM", "not a causal language model"),
        ("LlavaConfig", "LlavaModel", "not a causal language model"),
    ],
)
def test_architecture_that_a_paged_cache_cannot_serve_is_refused_by_name(
    class_name: str, architecture: str, reason: str, tmp_path: Path
) -> None:
    directory = write_config(tmp_path, class_name, architecture)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load_causal_lm(engine_config(directory), CPU)
    assert architecture in str(caught.value)


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForCausalLM"])
def test_attention_in_both_directions_is_refused(architecture: str, tmp_path: Path) -> None:
    directory = write_config(tmp_path, "LlamaConfig", architecture, is_causal=False)
    with pytest.raises(ModelLoadError, match=f"{architecture} attends in both directions"):
        load_causal_lm(engine_config(directory), CPU)


def test_an_encoder_without_its_head_is_no_causal_language_model(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(BertConfig(vocab_size=VOCAB_SIZE, **sizes)).save_pretrained(tmp_path)
    assert "BertModel is not a causal language model" in refusal(tmp_path)


def test_unknown_architecture_is_refused(llama: Path) -> None:
    set_config(llama, architectures=["MegaForCausalLM"])
    assert "MegaForCausalLM" in refusal(llama)
    set_config(llama, model_type="mega")
    assert "mega" in refusal(llama)


def test_remote_code_is_not_run_unless_asked_for(llama: Path) -> None:
    (llama / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    set_config(llama, model_type="evil", auto_map=auto_map)
    assert str(llama) in refusal(llama)


def test_state_outside_attention_is_found_by_running_the_model(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that mixes neighbouring tokens, as a convolution does, is right only when run whole."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    plain: Callable[..., torch.Tensor] = LlamaMLP.forward

    def mixing(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        return plain(self, x + 0.5 * x.roll(1, dims=1))

    monkeypatch.setattr(LlamaMLP, "forward", mixing)
    assert "state outside attention" in refusal(llama)


def test_ignored_positions_are_found_by_running_the_model(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    plain: Callable[..., Any] = LlamaRotaryEmbedding.forward

    def counting(self: LlamaRotaryEmbedding, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return plain(self, x, torch.arange(x.shape[1]).unsqueeze(0))

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", counting)
    assert "tokens come in chunks" in refusal(llama)


def test_model_whose_code_fails_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def broken(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes\ndo not match")

    monkeypatch.setattr(LlamaMLP, "forward", broken)
    assert "first run of LlamaForCausalLM, on text alone, failed: shapes do not match" in refusal(llama)


@pytest.mark.parametrize("kind", ["shards", "gguf"])
def test_weights_go_straight_to_a_device_that_is_no_cpu(
    kind: str, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none here, so that transformers is asked for the CPU in its place."""
    placed: list[Any] = []
    whole = load_causal_lm(engine_config(llama), CPU)
    real = type(whole).from_pretrained

    def from_pretrained(*args: Any, device_map: Any = None, **options: Any) -> Any:
        placed.append(device_map)
        return real(*args, device_map={"": CPU}, **options)

    if kind == "gguf":
        path = write_gguf(whole, tmp_path / "llama.gguf")
    else:
        path = tmp_path / "shards"
        whole.save_pretrained(path, max_shard_size="100KB")
        assert len([*path.glob("*.safetensors")]) > 1
    monkeypatch.setattr(type(whole), "from_pretrained", from_pretrained)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *args, **kwargs: module)
    loaded = load_causal_lm(engine_config(path), torch.device("cuda"))
    assert placed == [{"": torch.device("cuda")}]
    assert not [module for module in loaded.modules() if hasattr(module, "_hf_hook")]
    for name, weight in whole.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    monkeypatch.setattr(model_loader, "read_checkpoint", lambda *_: None)
    load_causal_lm(engine_config(path), CPU)
    assert placed[1] is None


def test_quantizing_while_loading_is_for_cpus_alone(llama: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"quantization=int8 .* CPUs"):
        load_causal_lm(engine_config(llama, quantization="int8"), torch.device("cuda"))


def test_context_and_memory_are_checked_at_start_up(llama: Path) -> None:
    assert "257" in refusal(llama, max_model_len=CONTEXT + 1)
    assert "tokens fit" in refusal(llama, max_model_len=CONTEXT, kv_cache_memory=10_000)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(llama: Path) -> None:
    assert "no CUDA device" in refusal(llama, device="cuda")


def test_collector_runs_again_after_loading(llama: Path) -> None:
    gc.enable()
    build_executor(engine_config(llama))
    assert gc.isenabled()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_bars_are_for_terminals_alone(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging as transformers_logging

    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with model_loader.progress_bars_on_a_terminal():
        assert transformers_logging.is_progress_bar_enabled() is is_terminal
    assert transformers_logging.is_progress_bar_enabled()


def test_executor_says_how_busy_its_device_is(llama: Path) -> None:
    _, runner = build_executor(engine_config(llama))
    assert isinstance(runner.device_monitor, CpuMonitor)
    utilization, used, total = runner.device_monitor.sample()
    assert utilization is not None
    assert 0 <= utilization <= 1
    assert used is not None
    assert total is not None
    assert 0 < used < total


LEAN = """
import json, sys
from orcinus.engine.platform.lean_imports import import_transformers
import_transformers()
from orcinus.engine.startup.build import build_executor
from tests.integration.tiny_models import engine_config
from pathlib import Path
_, runner = build_executor(engine_config(Path(sys.argv[1])))
heavy = {"sympy", "torch._dynamo", "torch._inductor", "torch._prims", "torch.distributed.tensor"} & set(sys.modules)
import torch, transformers
compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item()
from torch.distributed.tensor import DTensor
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
prompt = torch.tensor([[5, 6, 7, 8, 9]])
tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
print(json.dumps([sorted(heavy), compiled, tokens[0, 5:].tolist()]))
"""


@pytest.mark.slow
def test_lean_imports_leave_out_the_compiler_and_leave_it_usable(llama: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LEAN, str(llama)], capture_output=True, text=True, cwd=root, check=True
    )
    heavy, compiled, tokens = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert compiled == 2
    assert tokens == greedy(build_executor(engine_config(llama))[1], PROMPT)
