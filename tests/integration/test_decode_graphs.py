"""The truth test with steps of single tokens padded and replayed, as on a GPU; what is recorded is called again."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.kernels.library import load_library
from orcinus.engine.messages import NewRequest, ScheduledRequest, StepPlan
from orcinus.engine.runner.cuda_graphs import recorded_sizes
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor
from tests.integration.tiny_models import build_model, engine_config
from tests.integration.truth import BLOCK_SIZE, MAX_MODEL_LEN, core_with_few_blocks, greedy_cases, serve

# What makes the host wait for the device: no recording can contain it.
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"}


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations inside it that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in WAITING:
            self.operations.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(load_library() is None, reason="the gathering backend looks at the host's lengths")
@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_padded_and_replayed_steps_give_the_tokens_of_generate(family: str, runs_ahead: bool, tmp_path: Path) -> None:
    replayed: list[int] = []

    def record(function: Callable[[], None]) -> Callable[[], None]:
        size = next(sizes)
        function()

        def replay() -> None:
            replayed.append(size)
            function()

        return replay

    rng = random.Random(family)
    directory = build_model(family, tmp_path)
    cases = greedy_cases(directory, rng, 20)
    info, runner = build_executor(engine_config(directory, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE))
    assert isinstance(runner._attention.backend, NativeBackend)
    assert runner.graphs is None
    sizes = iter(recorded_sizes(info.max_num_seqs))
    runner.record_decodes(record, info.max_model_len)
    runner.runs_ahead = runs_ahead
    run = serve(core_with_few_blocks((info, runner)), cases, rng)
    assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]
    assert set(replayed) == {1, 2, 4}
    assert next(sizes, None) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"seed": 1},
        {"min_p": 0.1},
        {"logprobs": 2},
        {"repetition_penalty": 1.1, "frequency_penalty": 0.5, "seed": 1},
        {"bad_words_token_ids": ((3,), (4, 5), (5, 6, 7)), "temperature": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_step_launched_ahead_never_waits_for_the_device_in_between(
    family: str, sampling: dict[str, Any], tmp_path: Path
) -> None:
    _never_waits(family, sampling, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "gpt_oss"])
def test_no_layer_waits_for_the_device(family: str, tmp_path: Path) -> None:
    _never_waits(family, {"temperature": 0}, tmp_path)


def _never_waits(family: str, sampling: dict[str, Any], directory: Path) -> None:
    """Launch a step, and another ahead of its tokens."""
    directory = build_model(family, directory)
    _, runner = build_executor(engine_config(directory, max_num_batched_tokens=64))
    names = ["a", "b", "c"]
    new = [
        NewRequest(request_id=name, token_ids=[5, 6, 7], num_prompt_tokens=3, sampling=SamplingParams(**sampling))
        for name in names
    ]
    num_groups = len(runner._rows.block_tables)
    prompts = [
        ScheduledRequest(request_id=name, num_computed_tokens=0, num_tokens=3, new_block_ids=[[i]] * num_groups)
        for i, name in enumerate(names)
    ]
    runner.runs_ahead = True
    with Waits() as waits:
        first = runner.launch(StepPlan(scheduled=prompts, new_requests=new))
        singles = [ScheduledRequest(request_id=name, num_computed_tokens=3, num_tokens=1) for name in names]
        second = runner.launch(StepPlan(scheduled=singles))
        assert len(first().sampled_token_ids) == len(second().sampled_token_ids) == 3
        assert waits.operations == []
        torch.ones(1).item()
    assert waits.operations == ["aten::_local_scalar_dense"]
