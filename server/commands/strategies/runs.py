"""Runs a load on an engine core under one strategy, and says what it came to. Real clock, no server."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import msgspec

from orcinus.config.engine_config import BatchingStrategy
from orcinus.engine.core import EngineCore, Executor
from orcinus.engine.errors import OrcinusError
from orcinus.engine.messages import AddRequest, EngineInfo, Fault, StepPlan, StepResult
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.scheduler import Scheduler
from orcinus.server.commands.strategies.load import Arrival, Arrivals, Item, Traffic
from orcinus.server.commands.strategies.padded import PaddedGroups
from orcinus.server.load.report import percentile

if TYPE_CHECKING:
    from orcinus.engine.platform.device import DeviceMonitor

InOneEngine = Literal["continuous", "static", "interleaved", "sequential", "padded", "padded-sorted"]
Strategy = Literal[InOneEngine, "instances"]
"""The engine's own strategies, padded groups, and several instances of the model that run one request each."""

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
ENGINE_STRATEGIES: tuple[BatchingStrategy, ...] = get_args(BatchingStrategy)


class Feeder(Protocol):
    """Gives requests to an engine when they are due."""

    @property
    def has_more(self) -> bool: ...

    def take(self, elapsed_s: float, num_done: int, *, is_idle: bool) -> list[Arrival]: ...

    def wait_s(self, elapsed_s: float) -> float | None: ...


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Tells how the slots stood during a step. `num_useful` rows computed something of an answer or its prompt."""

    started: float
    duration_s: float
    num_useful: int
    num_running: int
    num_waiting: int


@dataclass(slots=True)
class Served:
    """One request of a run. Times are in seconds since the load began."""

    arrived_s: float
    num_counted: int
    num_tokens: int = 0
    first_s: float = math.nan
    last_s: float = math.nan

    @property
    def is_done(self) -> bool:
        return self.num_tokens == self.num_counted

    def add(self, num_tokens: int, now_s: float) -> None:
        """Count tokens of the answer; any after its own are padding."""
        num_tokens = min(num_tokens, self.num_counted - self.num_tokens)
        if not num_tokens:
            return
        if not self.num_tokens:
            self.first_s = now_s
        self.last_s = now_s
        self.num_tokens += num_tokens


@dataclass(slots=True)
class Recorder:
    """An executor that notes, of each step, how the slots stand while it runs: after the refill."""

    executor: Executor
    served: dict[str, Served]
    scheduler: Scheduler | None = None
    steps: list[StepRecord] = field(default_factory=list)
    device_monitor: "DeviceMonitor | None" = None

    @property
    def runs_ahead(self) -> bool:
        return self.executor.runs_ahead

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        return self.executor.prepare(sampling)

    def diagnose(self, error: Exception) -> Fault:
        return self.executor.diagnose(error)

    def warm_up(self) -> None:
        self.executor.warm_up()

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        assert self.scheduler is not None, "the recorder belongs to no core yet"
        started = time.monotonic()
        running, waiting = self.scheduler.num_running, self.scheduler.num_waiting
        useful = sum(not self.served[item.request_id].is_done for item in plan.scheduled)
        result = self.executor.launch(plan)

        def wait() -> StepResult:
            waited_for = result()
            self.steps.append(StepRecord(started, time.monotonic() - started, useful, running, waiting))
            return waited_for

        return wait


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One strategy's run over the load, in numbers. Times are in seconds."""

    strategy: str
    num_requests: int
    num_slots: int
    num_steps: int | None  # None where several engines stepped
    elapsed_s: float
    output_tokens_per_s: float
    mean_ttft_s: float
    p99_ttft_s: float
    mean_e2e_s: float
    slots_full: float | None  # None where no step ran while requests waited
    idle: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """For the plot: when each step began, and how many slots computed something useful in it."""

    times_s: list[float]
    busy_slots: list[int]
    end_s: float


def run_strategy(
    info: EngineInfo,
    executor: Executor,
    strategy: InOneEngine,
    load: Sequence[Item],
    *,
    batch_wait_ms: float,
    traffic: Traffic | None = None,
    seed: int = 0,
) -> tuple[RunResult, Timeline]:
    """Run the whole load under `strategy` on the real clock. Raises `OrcinusError` if a request fails."""
    batching, feeder = _start(strategy, Arrivals(load, traffic or Traffic(), seed), info.max_num_seqs, batch_wait_ms)
    served: dict[str, Served] = {}
    recorder = Recorder(executor, served)
    core = EngineCore(msgspec.structs.replace(info, batching=batching), recorder, batch_wait_ms=batch_wait_ms)
    recorder.scheduler = core.scheduler
    started = time.monotonic()
    _drive(core, feeder, served, f"{strategy}-{started}", started)
    steps, num_slots = recorder.steps, core.scheduler.num_slots
    numbers = numbers_of(list(served.values()))
    busy_s = sum(step.num_useful * step.duration_s for step in steps)
    result = RunResult(
        strategy=strategy,
        num_slots=num_slots,
        num_steps=len(steps),
        slots_full=_slots_full(steps, num_slots),
        idle=1 - busy_s / (info.max_num_seqs * numbers["elapsed_s"]),
        **numbers,
    )
    times_s = [step.started - started for step in steps]
    return result, Timeline(times_s, [step.num_useful for step in steps], result.elapsed_s)


def _start(
    strategy: InOneEngine, arrivals: Arrivals, num_slots: int, batch_wait_ms: float
) -> tuple[BatchingStrategy, Feeder]:
    """Return how the engine batches, and who gives it its requests. A padded group starts and ends as one by itself."""
    match strategy:
        case "padded" | "padded-sorted":
            sorts = strategy == "padded-sorted"
            return "continuous", PaddedGroups(arrivals, num_slots, batch_wait_ms / 1000, sorts_by_length=sorts)
        case _:
            return strategy, arrivals


def numbers_of(served: Sequence[Served]) -> dict[str, Any]:
    """Return what `RunResult` says of latencies and throughput, whoever served the requests."""
    elapsed_s = max(one.last_s for one in served)
    waits_s = [one.first_s - one.arrived_s for one in served]
    return {
        "num_requests": len(served),
        "elapsed_s": elapsed_s,
        "output_tokens_per_s": sum(one.num_tokens for one in served) / elapsed_s,
        "mean_ttft_s": statistics.fmean(waits_s),
        "p99_ttft_s": percentile(waits_s, 99),
        "mean_e2e_s": statistics.fmean(one.last_s - one.arrived_s for one in served),
    }


def serve_alone(
    info: EngineInfo, executor: Executor, prompt_token_ids: list[int], num_tokens: int
) -> tuple[float, float, int]:
    """Run one request by itself; return when its first and its last token came, and how many there were."""
    core = EngineCore(info, executor)
    arrival = Arrival(0, 0.0, prompt_token_ids, num_tokens, num_tokens)
    served = {"alone": Served(0.0, num_tokens)}
    core.add_request(_request("alone", arrival, time.monotonic()))
    while core.has_work:
        _step(core, served, 0.0)
    return served["alone"].first_s, served["alone"].last_s, served["alone"].num_tokens


def _drive(core: EngineCore, feeder: Feeder, served: dict[str, Served], run: str, started: float) -> None:
    """Step until all requests have come and are done."""
    num_done = 0
    while core.has_work or feeder.has_more:
        elapsed_s = time.monotonic() - started
        for arrival in feeder.take(elapsed_s, num_done, is_idle=not core.has_work):
            request_id = f"{run}-{arrival.index}"
            served[request_id] = Served(arrival.arrived_s, arrival.num_counted)
            core.add_request(_request(request_id, arrival, started))
        if (wait_s := _wait_s(core, feeder, elapsed_s)) is not None:
            time.sleep(wait_s)
            continue
        num_done += _step(core, served, started)


def _wait_s(core: EngineCore, feeder: Feeder, elapsed_s: float) -> float | None:
    """Return how long there is nothing to do; None if there is something."""
    core_s = core.wait_time_s() if core.has_work else math.inf
    if core_s is None:
        return None
    feeder_s = feeder.wait_s(elapsed_s)
    wait_s = min(core_s, math.inf if feeder_s is None else feeder_s)
    assert wait_s < math.inf, "requests wait for nothing"
    return max(0.0, wait_s)


def _step(core: EngineCore, served: dict[str, Served], started: float) -> int:
    """Run one step; return how many requests are done with it."""
    outputs = core.step()
    now_s = time.monotonic() - started
    num_done = 0
    for delta in outputs.deltas:
        if delta.error is not None:
            raise OrcinusError(f"a request failed: {delta.error}")
        one = served[delta.request_id]
        was_done = one.is_done
        one.add(len(delta.token_ids), now_s)
        num_done += one.is_done and not was_done
    return num_done


def _request(request_id: str, arrival: Arrival, started: float) -> AddRequest:
    return AddRequest(
        request_id=request_id,
        prompt_token_ids=arrival.prompt_token_ids,
        sampling=SamplingParams(max_tokens=arrival.num_tokens, temperature=0.0, seed=0, ignore_eos=True),
        arrival_time=started + arrival.arrived_s,
    )


def _slots_full(steps: Iterable[StepRecord], num_slots: int) -> float | None:
    shares = [step.num_running / num_slots for step in steps if step.num_waiting > 0]
    return statistics.fmean(shares) if shares else None
