"""What is measured before the KV cache of a GPU is sized; the GPU is told by a torch that pretends to have one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from orcinus.engine.attention.interface import PagedLayer
from orcinus.engine.attention.serving import ATTENTION_NAME, PagedAttention, attention_function
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.messages import StepPlan, StepResult
from orcinus.engine.platform.device import CpuMonitor
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.startup import device_memory
from orcinus.engine.startup.cache_size import BatchLimits
from orcinus.engine.startup.device_memory import largest_step, measured_cuda_memory
from orcinus.engine.startup.probe import ServedModel, cache_groups, probe_model
from tests.integration.tiny_models import FAMILIES, random_model

CPU = torch.device("cpu")
MIB = 2**20
LIMITS = BatchLimits(max_num_seqs=20, max_num_batched_tokens=64, block_size=4)
MAX_LEN = 40


class Gpu:
    """1000 MiB, of which others have 50 and torch 200; 300 at the peak of any step, and 7 more for each recording."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[Callable[[], None]] = []
        self.num_emptied = 0
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty_cache)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 300 * MIB)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 200 * MIB)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 1000 * MIB))
        monkeypatch.setattr(device_memory, "device_memory", lambda device: 1000 * MIB)

    @property
    def free(self) -> int:
        first = 60 * MIB if self.recorded else 0
        return 750 * MIB - first - 7 * MIB * max(0, len(self.recorded) - 1)

    def empty_cache(self) -> None:
        self.num_emptied += 1

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        self.recorded.append(function)
        return function


class NotingRunner(ModelRunner):
    plans: list[StepPlan]

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        return super().execute(plan)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.fixture(scope="module")
def served() -> ServedModel:
    AttentionInterface.register(ATTENTION_NAME, attention_function)
    class_name, settings = FAMILIES["gemma2"]
    with torch.inference_mode():
        return probe_model(random_model(class_name, "float32", ATTENTION_NAME, **settings), CPU)


def runner_maker(
    served: ServedModel, runners: list[NotingRunner]
) -> Callable[[dict[nn.Module, PagedLayer]], ModelRunner]:
    def make(layers: dict[nn.Module, PagedLayer]) -> ModelRunner:
        runner = NotingRunner(
            served.model,
            PagedAttention(served.backend, layers),
            Sampler([]),
            block_size=LIMITS.block_size,
            device=CPU,
            device_monitor=CpuMonitor(),
            make_compiler=lambda: pytest.fail("no grammar here"),
            max_num_seqs=LIMITS.max_num_seqs,
            num_cache_groups=2,
        )
        runner.plans = []
        runners.append(runner)
        return runner

    return make


def test_the_cache_gets_what_the_largest_step_and_all_recordings_leave(served: ServedModel, gpu: Gpu) -> None:
    runners: list[NotingRunner] = []
    specs, costs = cache_groups(served, LIMITS.block_size, MAX_LEN)
    with torch.inference_mode():
        left = measured_cuda_memory(
            served, specs, LIMITS, MAX_LEN, make_runner=runner_maker(served, runners), record=gpu.record, device=CPU
        )
    (runner,) = runners
    step, release = runner.plans
    assert step == largest_step(LIMITS, MAX_LEN, num_groups=2)
    assert len(release.released) == LIMITS.max_num_seqs
    scratch = 10 * sum(cost.bytes_per_block for cost in costs)  # blocks of 40 tokens
    others, peak = 50 * MIB, 300 * MIB
    recordings = 60 * MIB + 7 * MIB * 5  # of 24, 16, 8, 4, 2, 1
    assert left == 900 * MIB - (peak + others - scratch) - recordings
    assert len(gpu.recorded) == 2
    assert runner.graphs is None
    assert gpu.num_emptied > 0


def test_the_largest_step_has_all_tokens_and_all_requests_and_samples_for_each() -> None:
    plan = largest_step(LIMITS, MAX_LEN, num_groups=2)
    assert plan.num_tokens == largest_step(LIMITS, 1000, num_groups=2).num_tokens == 64
    assert [item.num_tokens for item in plan.scheduled] == [40, 6, *[1] * 18]
    assert [item.num_samples for item in plan.scheduled] == [1] * 20
    assert plan.scheduled[0].new_block_ids == [list(range(10))] * 2
    assert plan.scheduled[1].new_block_ids == [[0, 1]] * 2
    spread = largest_step(BatchLimits(3, 64, 4), 30, num_groups=1)
    assert [item.num_tokens for item in spread.scheduled] == [30, 30, 4]
    for new in plan.new_requests:
        sampling = new.sampling
        assert 0 < sampling.top_p < 1
        assert sampling.top_k > 0 < sampling.min_p
        assert sampling.logprobs
        assert sampling.repetition_penalty != 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ModelLoadError("64 tokens and 20 requests does not fit")),
        (RuntimeError("no kernel image"), RuntimeError("no kernel image")),
    ],
    ids=["memory", "other"],
)
def test_a_step_that_does_not_fit_beside_the_weights_is_refused_with_what_to_lower(
    error: Exception, expected: Exception, served: ServedModel, gpu: Gpu
) -> None:
    def make(layers: dict[nn.Module, PagedLayer]) -> ModelRunner:
        raise error

    specs, _ = cache_groups(served, LIMITS.block_size, MAX_LEN)
    with torch.inference_mode(), pytest.raises(type(expected), match=str(expected)):
        measured_cuda_memory(served, specs, LIMITS, MAX_LEN, make_runner=make, record=gpu.record, device=CPU)
