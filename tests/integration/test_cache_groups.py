"""Layers with windows and layers that share keys, served from pools of their own: nothing but the memory may change."""

import random
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from orcinus.engine.attention import choice
from orcinus.engine.core import EngineCore
from orcinus.engine.cpu.decoder_layers import NativeDecoder
from orcinus.engine.cpu.packed_linear import native_kind
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.messages import EngineInfo
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup import probe
from orcinus.engine.startup.build import build_executor
from tests.effort import slow_but_for
from tests.integration.test_truth import poisoned_model
from tests.integration.tiny_models import CONTEXT, VOCAB_SIZE, build_model, engine_config
from tests.integration.truth import (
    Case,
    Run,
    core_with_few_blocks,
    generate_alone,
    prompts,
    random_tokens,
    sampled_cases,
    serve,
)

# How many layers keep everything, and how many have a window.
FAMILIES = {
    "mistral": (0, 3),
    "phi3": (0, 3),
    "gemma2": (1, 2),
    "gemma3": (1, 2),
    "gpt_oss": (1, 2),
    "gemma3n": (1, 2),  # of six; the others share theirs
}
NATIVE_SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: build_model(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="module")
def cases_of(model_of: Callable[[str], Path]) -> Callable[[str], list[Case]]:
    return cache(lambda family: long_cases(model_of(family), random.Random(family), 10))


def long_cases(directory: Path, rng: random.Random, count: int) -> list[Case]:
    """Prompts of several windows, of which two in three begin alike, and what `generate` makes of them."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    shared = random_tokens(rng, 150)
    cases: list[Case] = []
    while len(cases) < count:
        head = shared[: rng.choice([0, 130, 150])]
        prompt = head + random_tokens(rng, rng.randint(1, 60))
        max_tokens = rng.randint(8, 30)
        expected = generate_alone(model, prompt, max_tokens)
        if expected is not None:
            sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            cases.append(Case(prompt, sampling, expected))
    return cases


@pytest.mark.parametrize("block_size", [4, 64])
@pytest.mark.parametrize("family", slow_but_for(FAMILIES, "gemma3", "gpt_oss"))
def test_sequences_of_many_windows_give_the_tokens_of_generate(
    family: str, block_size: int, model_of: Callable[[str], Path], cases_of: Callable[[str], list[Case]]
) -> None:
    executor = build_executor(engine_config(model_of(family), block_size=block_size, max_num_batched_tokens=48))
    core = core_with_few_blocks(executor, {4: 64, 64: 6}[block_size])
    cases = cases_of(family)
    run = serve(core, cases, random.Random(1))
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]
    assert run.max_running > 1
    # No request outgrows the one block that is kept for it where it has 64 tokens.
    assert (run.num_preemptions > 0) == (block_size == 4)
    assert run.num_cached_tokens > 0
    core.scheduler.check_integrity()


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_have_smaller_pools_and_shared_layers_none(family: str, model_of: Callable[[str], Path]) -> None:
    info, runner = build_executor(engine_config(model_of(family), block_size=4))
    full, window = info.cache_groups
    assert (full.num_layers, window.num_layers) == FAMILIES[family]
    assert full.num_blocks == info.num_kv_blocks == 4 * CONTEXT // 4
    assert window.num_blocks <= full.num_blocks // 4
    stored = [layer.cache for layer in runner._attention._layers.values() if not layer.only_reads]
    assert sum(cached.keys.nbytes + cached.values.nbytes for cached in stored) == info.kv_cache_bytes
    assert len(stored) == full.num_layers + window.num_layers


def test_a_window_that_reaches_over_the_whole_context_makes_no_group(model_of: Callable[[str], Path]) -> None:
    info, _ = build_executor(engine_config(model_of("gemma3"), max_model_len=12))
    assert [(group.num_layers, group.window) for group in info.cache_groups] == [(3, None)]


def test_a_context_fits_that_layers_without_windows_leave_no_memory_for(tmp_path: Path) -> None:
    windowed, whole = (
        build_model("gemma3", tmp_path / "a"),
        build_model("gemma3", tmp_path / "b", sliding_window=CONTEXT),
    )
    limits: dict[str, Any] = {"block_size": 4, "max_num_seqs": 1, "max_model_len": CONTEXT}
    memory = 100 * 1024  # 1 KiB for each layer and block, of which 64 hold the context
    with pytest.raises(ModelLoadError, match=r"256 tokens needs 0\.2 MiB .* at most 132 tokens fit"):
        build_executor(engine_config(whole, kv_cache_memory=memory, **limits))
    info, runner = build_executor(engine_config(windowed, kv_cache_memory=memory, **limits))
    assert [(group.num_blocks, group.window) for group in info.cache_groups] == [(64, None), (16, 12)]
    (case,) = long_cases(windowed, random.Random(5), 1)
    long = Case(random_tokens(random.Random(6), CONTEXT - 20), case.sampling, [])
    run = serve(EngineCore(info, runner), [case, long], random.Random(2))
    assert run.outcomes[0].token_ids == case.expected
    assert run.outcomes[1].error is None


def answers(run: Run) -> list[Any]:
    return [
        (outcome.token_ids, [entry for delta in outcome.deltas for entry in delta.logprobs or []])
        for outcome in run.outcomes
    ]


@pytest.mark.skipif(
    native_kind(load_library(), torch.bfloat16, None) is None,
    reason="our kernels do not multiply bfloat16 on this CPU",
)
@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_groups_change_not_a_bit_in_bfloat16(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some layers as a whole in our kernels, and some in the model's own code."""
    directory = build_model(family, tmp_path, **NATIVE_SHAPE)
    rng = random.Random(8)
    sampling = SamplingParams(max_tokens=20, logprobs=3, seed=3, ignore_eos=True)
    cases = [Case(random_tokens(rng, length), sampling, []) for length in (150, 3, 70, 90, 20, 130)]
    found = []
    for has_groups in (True, False):
        if not has_groups:
            monkeypatch.setattr(probe, "_kept_tokens", lambda spec, max_len: None)
        config = engine_config(directory, dtype="bfloat16", block_size=4, enable_prefix_caching=False)
        info, runner = build_executor(config)
        assert len(info.cache_groups) == 1 + has_groups
        is_native = any(isinstance(module, NativeDecoder) for module in runner._model.causal_lm.modules())
        assert is_native == (family == "mistral")
        found.append(answers(serve(EngineCore(info, runner), cases, random.Random(9))))
    assert found[0] == found[1]


def test_a_broken_prompt_leaves_its_neighbours_windows_in_peace(
    model_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks go on to others while it is still running. Gathered, a block's unwritten rows are read, too."""
    poison = VOCAB_SIZE - 1
    monkeypatch.setattr(choice, "load_library", lambda: None)
    directory = poisoned_model(model_of("gemma3"), tmp_path, poison)
    executor: tuple[EngineInfo, ModelRunner] = build_executor(engine_config(directory, block_size=4))
    assert executor[1]._attention.backend.name == "torch"
    rng = random.Random(9)
    broken = Case([8, poison, *random_tokens(rng, 120)], SamplingParams(temperature=0, max_tokens=5), [])
    healthy = [
        Case([token for token in prompt if token != poison] or [5], case.sampling, [])
        for prompt, case in zip(islice(prompts(rng), 14), sampled_cases(rng, 14), strict=True)
    ]
    cases = [broken, *healthy[:5], broken, *healthy[5:10], broken, *healthy[10:]]
    run = serve(core_with_few_blocks(executor, CONTEXT // 4), cases, rng)
    for case, outcome in zip(cases, run.outcomes, strict=True):
        assert (outcome.error is not None) == (case is broken)
