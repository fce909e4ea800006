"""Requests that arrive at their times at an engine core whose steps take what a function says, on a virtual clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.simulation.costs import StepShape, shape_of
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest, EngineInfo, Fault, StepOutputs, StepPlan, StepResult
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.prefill_budget import PendingPrompt, PrefillBudget
from orcinus.server.load.answers import RequestRecord
from orcinus.server.load.run import LoadRun

if TYPE_CHECKING:
    from orcinus.engine.platform.device import DeviceMonitor

StepTime = Callable[[StepShape], float]


class VirtualClock:
    """A clock that is moved by those who say that time has passed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to be. Prompts of different `content` have nothing in common."""

    at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    content: int
    client: str = ""


class TimedExecutor:
    """Samples token 1 for every request, and lets the time pass that a step takes."""

    runs_ahead = False

    def __init__(self, clock: VirtualClock, step_time: StepTime) -> None:
        self.device_monitor: DeviceMonitor | None = None
        self._clock = clock
        self._step_time = step_time

    def prepare(self, sampling: SamplingParams) -> None:
        """Return at once: nothing takes time before a request can run."""

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        self._clock.now += self._step_time(shape_of(plan))
        sampled = {item.request_id: [1] * item.num_samples for item in plan.scheduled if item.num_samples}
        return lambda: StepResult(sampled_token_ids=sampled)

    def diagnose(self, error: Exception) -> Fault:
        return "engine"

    def warm_up(self) -> None:
        """Return at once: there is nothing to load."""


class Unlimited(PrefillBudget):
    """Prompts take all the tokens that a step may have."""

    def prompt_tokens(self, *, num_decodes: int, num_flowing: int, prompts: Sequence[PendingPrompt]) -> int | None:
        return None


@dataclass(slots=True)
class _Answer:
    arrival: Arrival
    token_times_s: list[float] = field(default_factory=list)

    def record(self) -> RequestRecord:
        return RequestRecord(
            sent_s=self.arrival.at_s,
            ended_s=self.token_times_s[-1],
            asked_prompt_tokens=self.arrival.num_prompt_tokens,
            asked_output_tokens=self.arrival.num_output_tokens,
            chunk_times_s=self.token_times_s,
            prompt_tokens=self.arrival.num_prompt_tokens,
            completion_tokens=len(self.token_times_s),
        )


def simulate(core: EngineCore, clock: VirtualClock, arrivals: Sequence[Arrival]) -> LoadRun:
    """Serve all arrivals and return what clients would have measured. The core has the clock and a `TimedExecutor`."""
    answers: dict[str, _Answer] = {}
    coming = sorted(arrivals, key=lambda arrival: arrival.at_s, reverse=True)
    while coming or core.has_work:
        if not core.has_work:
            clock.now = max(clock.now, coming[-1].at_s)
        while coming and coming[-1].at_s <= clock.now:
            _add(core, answers, coming.pop())
        clock.now += core.wait_time_s() or 0.0
        _take_in(answers, core.step(), clock.now)
    records = [answer.record() for answer in answers.values()]
    return LoadRun(records, clock.now - min(arrival.at_s for arrival in arrivals), client_cpu=0.0)


def engine_info(*, max_num_seqs: int, max_num_batched_tokens: int) -> EngineInfo:
    """Return an engine with more blocks than it needs."""
    return EngineInfo(
        model="simulated",
        architecture="none",
        num_parameters=0,
        weight_bytes=0,
        dtype="none",
        device="none",
        device_name="none",
        attention_backend="none",
        vocab_size=2,
        eos_token_ids=[],
        max_model_len=4096,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        num_kv_blocks=128 * max_num_seqs,
        block_size=32,
        kv_cache_bytes=0,
        enable_prefix_caching=True,
        batching="continuous",
        load_time_s=0.0,
    )


def _add(core: EngineCore, answers: dict[str, _Answer], arrival: Arrival) -> None:
    name = f"r{len(answers)}"
    answers[name] = _Answer(arrival)
    core.add_request(
        AddRequest(
            request_id=name,
            prompt_token_ids=[arrival.content] * arrival.num_prompt_tokens,
            sampling=SamplingParams(max_tokens=arrival.num_output_tokens, ignore_eos=True),
            arrival_time=arrival.at_s,
            client=arrival.client,
        )
    )


def _take_in(answers: dict[str, _Answer], outputs: StepOutputs, now_s: float) -> None:
    for delta in outputs.deltas:
        answers[delta.request_id].token_times_s += [now_s] * len(delta.token_ids)
