"""Heads for multi-token prediction in GGUF files: the model is the same without, and drafts are the checkpoint's."""

import logging
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orcinus.engine.core import EngineCore
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.models import loader
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.models.packed_types import packed_types_of
from orcinus.engine.runner.text_drafter import TextDrafter
from orcinus.engine.sampling_params import SamplingParams
from tests.effort import slow_but_for
from tests.integration.gguf_files import Q, write_gguf
from tests.integration.mtp_models import build_mtp_model, load
from tests.integration.test_gguf_in_blocks import CPU, logits_of
from tests.integration.test_mtp import NotingDrafter, load_executor, mixed_cases, num_drafts, serve_with
from tests.integration.tiny_models import engine_config
from tests.integration.truth import Case, random_tokens, serve
from tests.server_process import ROOT

needs_library = pytest.mark.skipif(load_library() is None, reason="there is no library here")

_SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
_DELTA_NETS: dict[str, Any] = {
    **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "rope_parameters": {
        **{"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
        **{"mrope_section": [2, 1, 1], "mrope_interleaved": True},
    },
}
_EXPERTS = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 32}
# Of each family the architecture in the file. llama.cpp's converter writes no head of a Llama.
FAMILIES = {"qwen3_5": "qwen35", "qwen3_5_moe": "qwen35moe", "llama": "llama"}
OVERRIDES = {"qwen3_5": _DELTA_NETS, "qwen3_5_moe": _DELTA_NETS | _EXPERTS, "llama": {}}


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Checkpoints with heads, random or good, whose weights a file in bfloat16 holds to the bit."""

    def build(family: str, *, is_good: bool = False) -> Path:
        directory = build_mtp_model(
            family, tmp_path_factory.mktemp(family), is_good=is_good, **_SHAPE | OVERRIDES[family]
        )
        weights = {name: held(name, w) for name, w in load_file(directory / "model.safetensors").items()}
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        return directory

    return cache(build)


def held(name: str, weight: Tensor) -> Tensor:
    """Return the nearest weight that comes back from how llama.cpp writes it: as bfloat16, plus 1, or -exp(A_log)."""
    weight = weight.bfloat16().float()
    if name.endswith("A_log"):
        return torch.zeros_like(weight)
    return (weight + 1) - 1 if weight.dim() == 1 and "norm" in name else weight


def head_of(directory: Path, num_layers: int) -> dict[str, Tensor]:
    weights = load_file(directory / "model.safetensors")
    return {
        name: weight for name, weight in weights.items() if name.startswith(("mtp.", f"model.layers.{num_layers}."))
    }


def write(
    directory: Path,
    file: Path,
    family: str,
    kind: Any,
    *,
    has_head: bool = True,
    changes: dict[str, Tensor | None] | None = None,
) -> Path:
    """Write a checkpoint as a file, with its head, of whose weights some are others, or are left out where None."""
    model = load(directory)
    head = head_of(directory, model.config.num_hidden_layers) | (changes or {})
    given = {name: weight for name, weight in head.items() if weight is not None}
    return write_gguf(model, file, FAMILIES[family], kind, head=given if has_head else None)


@pytest.fixture(scope="module")
def file_of(directory_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def build(family: str, kind: Any, *, is_good: bool = False, has_head: bool = True) -> Path:
        file = tmp_path_factory.mktemp("files") / "model.gguf"
        return write(directory_of(family, is_good=is_good), file, family, kind, has_head=has_head)

    return cache(build)


def loaded(file: Path, **settings: Any) -> Any:
    return load_causal_lm(engine_config(file, **{"speculation": "mtp"} | settings), CPU)


# --- the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Q.F32, Q.Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_with_a_head_is_the_model_of_the_file_without(
    family: str, kind: Any, file_of: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="orcinus")
    model, logits = logits_of(file_of(family, kind), dtype="float32")
    assert "--speculation mtp or auto would use" in caplog.text
    caplog.clear()
    same, expected = logits_of(file_of(family, kind, has_head=False), dtype="float32")
    assert "MTP head" not in caplog.text
    assert model.config.num_hidden_layers == same.config.num_hidden_layers == len(model.model.layers)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_has_the_weights_that_it_was_written_from(
    family: str, directory_of: Callable[..., Path], file_of: Callable[..., Path]
) -> None:
    own, expected = (
        loaded(path, dtype="float32").mtp_head.state_dict() for path in (file_of(family, Q.BF16), directory_of(family))
    )
    assert own.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(own[name], weight), name


@pytest.mark.parametrize("family", ["qwen3_5_moe", "llama"])
def test_a_head_is_read_beside_a_model_that_transformers_reads(
    family: str, directory_of: Callable[..., Path], file_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "read_checkpoint", lambda *given: None)
    own, expected = (loaded(path).state_dict() for path in (file_of(family, Q.BF16), directory_of(family)))
    assert own.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(own[name], weight), name


# --- drafts and tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "is_good", "kind"),
    [
        ("qwen3_5", False, Q.BF16),
        ("qwen3_5_moe", True, Q.F32),
        pytest.param("qwen3_5", True, Q.F32, marks=pytest.mark.slow),
        pytest.param("qwen3_5_moe", False, Q.BF16, marks=pytest.mark.slow),
        pytest.param("llama", True, Q.BF16, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_drafts_and_tokens_are_those_of_the_checkpoint(
    family: str, is_good: bool, kind: Any, directory_of: Callable[..., Path], file_of: Callable[..., Path]
) -> None:
    runs, drafts = [], []
    cases = mixed_cases(random.Random(11), 16)
    for path in (directory_of(family, is_good=is_good), file_of(family, kind, is_good=is_good)):
        info, runner = load_executor(path)
        drafter = NotingDrafter(runner._model)
        executor = (msgspec.structs.replace(info, enable_prefix_caching=False), runner)
        runs.append(serve_with(executor, "mtp", cases, drafter=drafter))
        drafts.append({(name, at): draft for name, own in drafter.proposed.items() for at, draft in own.items()})
    tokens = [[outcome.token_ids for outcome in run.outcomes] for run in runs]
    assert tokens[0] == tokens[1]
    # Where a draft is tried depends on what shares the steps, what it is does not.
    common = drafts[0].keys() & drafts[1].keys()
    assert len(common) > max(len(own) for own in drafts) // 2
    assert [drafts[0][key] for key in common] == [drafts[1][key] for key in common]
    for run in runs:
        tried, accepted = num_drafts(run)
        assert tried > 0
        assert (accepted > tried // 3) == is_good


@needs_library
@pytest.mark.parametrize("kind", slow_but_for((Q.Q8_0, Q.Q4_0), Q.Q8_0), ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", slow_but_for(FAMILIES, "qwen3_5_moe"))
def test_a_file_in_blocks_gets_the_same_tokens_with_drafts_as_without(
    family: str, kind: Any, file_of: Callable[..., Path]
) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=24)
    cases = [Case(random_tokens(random.Random(i), 12), sampling, []) for i in range(12)]
    executor = load_executor(file_of(family, kind, is_good=True), dtype="bfloat16")
    plain, drafted = (serve_with(executor, speculation, cases) for speculation in ("off", "mtp"))
    assert [outcome.token_ids for outcome in drafted.outcomes] == [outcome.token_ids for outcome in plain.outcomes]
    tried, accepted = num_drafts(drafted)
    assert accepted > tried // 2 > 0


@needs_library
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_stays_in_its_blocks_where_the_model_does(family: str, file_of: Callable[..., Path]) -> None:
    model = loaded(file_of(family, Q.Q4_0), dtype="bfloat16")
    plain = [name for name, module in model.mtp_head.named_modules() if type(module) is nn.Linear]
    assert all(name.endswith("shared_expert_gate") for name in plain)
    assert not any(weight.dim() > 2 for weight in model.mtp_head.parameters())
    without = loaded(file_of(family, Q.Q4_0), dtype="bfloat16", speculation="off")
    assert packed_types_of(model)["Q4_0"] > packed_types_of(without)["Q4_0"]
    del model.mtp_head
    assert packed_types_of(model) == packed_types_of(without)


@pytest.mark.parametrize(
    "settings", [{"quantization": "none"}, {"quantization": "int8"}], ids=lambda s: s["quantization"]
)
def test_a_head_is_dequantized_where_the_model_is(
    settings: dict[str, Any], file_of: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="orcinus")
    executor = load_executor(file_of("qwen3_5_moe", Q.Q8_0, is_good=True), dtype="bfloat16", block_size=16, **settings)
    assert "the MTP head's weights in Q8_0 are dequantized to torch.bfloat16" in caplog.text
    assert executor[0].packed_types == {}
    sampling = SamplingParams(temperature=0, max_tokens=20)
    cases = [Case(random_tokens(random.Random(i), 12), sampling, []) for i in range(6)]
    tried, accepted = num_drafts(serve(EngineCore(*executor), cases, random.Random(1)))
    assert accepted > tried // 2 > 0


def test_a_head_without_a_last_norm_takes_the_models(directory_of: Callable[..., Path], tmp_path: Path) -> None:
    file = write(directory_of("qwen3_5"), tmp_path / "model.gguf", "qwen3_5", Q.F32, changes={"mtp.norm.weight": None})
    model = loaded(file)
    assert torch.equal(model.mtp_head.norm.weight, model.model.norm.weight)


# --- start-up -----------------------------------------------------------------------------------------------

DAMAGES: dict[str, tuple[str, Tensor | None, str]] = {
    "lacks": (
        "mtp.layers.0.mlp.up_proj.weight",
        None,
        r"not those of one of the model's own layers, first layer\.mlp\.up",
    ),
    "is of another shape": (
        "mtp.fc.weight",
        torch.zeros(64, 64),
        r"eh_proj.weight has the shape \(64, 64\) and not \(64, 128\)",
    ),
    "is unknown": ("mtp.layers.0.self_attn.sinks", torch.zeros(4), r"the model's own layers, first attn_sinks\.weight"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", [Q.F32, Q.Q8_0], ids=lambda kind: kind.name)
def test_a_head_that_is_not_whole_is_refused_by_name(
    damage: str, kind: Any, directory_of: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, weight, message = DAMAGES[damage]
    file = write(directory_of("qwen3_5"), tmp_path / "model.gguf", "qwen3_5", kind, changes={name: weight})
    with pytest.raises(ModelLoadError, match=message):
        load_executor(file, "mtp")
    assert isinstance(load_executor(file, "auto")[1].drafter, TextDrafter)
    assert "the checkpoint's MTP head is not used" in caplog.text


def test_a_file_without_a_head_has_none_to_draft_with(file_of: Callable[..., Path]) -> None:
    file = file_of("qwen3_5", Q.F32, has_head=False)
    with pytest.raises(ModelLoadError, match=r"the GGUF file has no MTP head \(blk\.4\.nextn\.eh_proj\.weight\)"):
        load_executor(file, "mtp")
    assert isinstance(load_executor(file, "auto")[1].drafter, TextDrafter)


@pytest.mark.slow
def test_the_server_says_in_one_line_that_a_file_has_no_head(file_of: Callable[..., Path]) -> None:
    file = file_of("qwen3_5", Q.F32, has_head=False)
    command = [sys.executable, "-m", "orcinus.server.cli", "serve", str(file), "--port", "0", "--speculation", "mtp"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    # A thread that still imports torch for the tokenizer may log lines of torch's when the process ends.
    assert [line for line in done.stderr.splitlines() if line.startswith("orcinus serve:")] == [
        "orcinus serve: speculation=mtp: the GGUF file has no MTP head (blk.4.nextn.eh_proj.weight);"
        " ngram, suffix and auto need none"
    ]
