"""Hybrids: models of which layers keep a state for each sequence, in place of keys and values.

The reference is transformers' own `generate`, one request at a time. It scans a prompt in chunks of its own and each
token after it by itself; both are rounded in other places than ours, by less than what `TIE` leaves out.
"""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from orcinus.engine.attention.step_context import SlotState
from orcinus.engine.messages import AddRequest, EngineInfo
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.recurrent import functions
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.startup.build import build_executor
from orcinus.engine.supervision.supervisor import _with_sizes_of
from tests.effort import slow_but_for
from tests.integration.test_step_context import record
from tests.integration.tiny_models import HYBRIDS, VOCAB_SIZE, build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    NUM_REQUESTS,
    core_with_few_blocks,
    greedy_cases,
    random_tokens,
    serve,
)

CPU = torch.device("cpu")
KINDS = ("qwen3_5", "lfm2", "bamba", "kimi_linear", "jamba")  # one of each kind of state
QUICK = ("qwen3_5", "lfm2")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: build_model(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="module")
def executor_of(model_of: Callable[[str], Path]) -> Callable[[str], tuple[EngineInfo, ModelRunner]]:
    def load(family: str) -> tuple[EngineInfo, ModelRunner]:
        return build_executor(engine_config(model_of(family), max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE))

    return cache(load)


@pytest.mark.parametrize("family", slow_but_for(HYBRIDS, *QUICK))
def test_batched_greedy_output_equals_generate_alone(
    family: str,
    model_of: Callable[[str], Path],
    executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]],
) -> None:
    rng = random.Random(family)
    cases = greedy_cases(model_of(family), rng, NUM_REQUESTS)
    run = serve(core_with_few_blocks(executor_of(family)), cases, rng)
    for case, outcome in zip(cases, run.outcomes, strict=True):
        assert outcome.error is None
        assert outcome.token_ids == case.expected
    # What the test is about must have happened.
    assert run.num_preemptions > 0
    assert run.max_running > 1
    assert max(len(case.prompt) for case in cases) > (engine_config(Path()).max_num_batched_tokens or 0) > 0
    assert len({token for case in cases for token in case.expected}) > VOCAB_SIZE // 8


@pytest.mark.parametrize("family", slow_but_for(KINDS, *QUICK))
def test_by_torch_tokens_are_the_same(
    family: str,
    model_of: Callable[[str], Path],
    executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, and where there are no kernels."""
    monkeypatch.setattr(functions, "_native", lambda _: None)
    rng = random.Random(family)
    cases = greedy_cases(model_of(family), rng, 14)
    run = serve(core_with_few_blocks(executor_of(family)), cases, rng, "torch")
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]


@pytest.mark.parametrize("way", ["ahead", "replayed"])
@pytest.mark.parametrize("family", slow_but_for(KINDS, "qwen3_5"))
def test_steps_launched_ahead_or_replayed_give_the_same(
    family: str,
    way: str,
    model_of: Callable[[str], Path],
    executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]],
) -> None:
    rng = random.Random(family)
    cases = greedy_cases(model_of(family), rng, 14)
    info, runner = executor_of(family)
    runner.runs_ahead = way == "ahead"
    if way == "replayed":
        runner.record_decodes(record, info.max_model_len)
    try:
        run = serve(core_with_few_blocks((info, runner)), cases, rng, way)
    finally:
        runner.runs_ahead, runner.graphs = False, None
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]


@pytest.mark.parametrize("family", slow_but_for(KINDS, *QUICK))
def test_a_request_that_is_aborted_leaves_nothing_to_the_next_one_in_its_slot(
    family: str, model_of: Callable[[str], Path], executor_of: Callable[[str], tuple[EngineInfo, ModelRunner]]
) -> None:
    rng = random.Random(family)
    cases = greedy_cases(model_of(family), rng, 6)
    core = core_with_few_blocks(executor_of(family))
    for i, case in enumerate(cases * 2):
        core.add_request(AddRequest(f"gone{i}", random_tokens(rng, 20), case.sampling, arrival_time=0.0))
    for _ in range(4):
        core.step()
    core.abort_requests([f"gone{i}" for i in range(2 * len(cases))])
    run = serve(core, cases, rng, "after")
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]


@pytest.mark.parametrize("family", slow_but_for(HYBRIDS, *QUICK))
def test_in_bfloat16_a_model_loads_and_writes_as_many_tokens_as_asked(
    family: str, model_of: Callable[[str], Path]
) -> None:
    config = engine_config(model_of(family), max_model_len=MAX_MODEL_LEN, block_size=16, dtype="bfloat16")
    info, runner = build_executor(config)
    rng = random.Random(family)
    cases = greedy_cases(model_of(family), rng, 5)
    run = serve(core_with_few_blocks((info, runner), info.num_kv_blocks), cases, rng)
    assert [len(outcome.token_ids) for outcome in run.outcomes] == [len(case.expected) for case in cases]


@pytest.mark.parametrize("settings", [{}, {"state_cache_memory": 0}, {"enable_prefix_caching": False}], ids=str)
@pytest.mark.parametrize("family", ["qwen3_5", "mamba2"])  # with attention, and without
def test_an_engine_that_takes_the_place_of_another_comes_to_the_same_sizes(
    family: str, settings: dict[str, Any], model_of: Callable[[str], Path]
) -> None:
    config = engine_config(model_of(family), **settings)
    first, _ = build_executor(config)
    again, _ = build_executor(_with_sizes_of(first, config))
    assert msgspec.structs.replace(again, load_time_s=first.load_time_s) == first


def test_each_layer_with_a_state_is_found_and_its_states_are_counted(model_of: Callable[[str], Path]) -> None:
    settings = engine_config(model_of("qwen3_5"), max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    info, runner = build_executor(settings)
    states: list[Any] = [m for m in runner._model.causal_lm.modules() if isinstance(m, SlotState)]
    # float32: three inputs of 2 * 2 * 8 + 4 * 16 channels, and four heads of 8 by 16
    assert [module.bytes_per_slot for module in states] == [4 * 3 * 96 + 4 * 4 * 8 * 16] * 3
    assert all(tensor.shape[0] == info.max_num_seqs + 1 for module in states for tensor in module.tensors)


def test_outside_of_a_served_model_the_functions_are_what_they_were(model_of: Callable[[str], Path]) -> None:
    """The same process may run the model as transformers does: the truth tests above do."""
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    alone: Any = AutoModelForCausalLM.from_pretrained(model_of("qwen3_5"), dtype=torch.float32)
    before = alone(ids).logits
    load_causal_lm(engine_config(model_of("qwen3_5")), CPU)
    assert torch.equal(alone(ids).logits, before)
