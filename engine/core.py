"""The central loop's body: schedule, execute, update. One `step` is one iteration over the batch.

Driven by the engine process, by `LLM` and by tests. Knows nothing of processes, transports or tensors: the
executor is handed in.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from orcinus.engine.messages import (
    AddRequest,
    CacheGroup,
    EngineInfo,
    Fault,
    RequestDelta,
    SlotReport,
    StepOutputs,
    StepPlan,
    StepResult,
    StepStats,
)
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.block_manager import BlockManager
from orcinus.engine.scheduler.preparation import Preparation
from orcinus.engine.scheduler.scheduled_step import ScheduledStep
from orcinus.engine.scheduler.scheduler import Scheduler, SchedulerLimits
from orcinus.engine.scheduler.slot_watch import SlotWatch
from orcinus.engine.scheduler.state_cache import StateCache

if TYPE_CHECKING:
    from orcinus.engine.platform.device import DeviceMonitor

logger = logging.getLogger(__name__)


# So many requests that failed alone, with no good step in between, are not to blame: something else is broken.
_MAX_CULPRITS = 3


class Executor(Protocol):
    """Runs the model: `engine.runner.model_runner.ModelRunner` does, and a fake in the tests.

    Where it `runs_ahead`, `launch` may return before the step is computed, and the next step may be launched before
    the result of the last one is asked for.
    """

    device_monitor: "DeviceMonitor | None"

    @property
    def runs_ahead(self) -> bool: ...

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        """Begin what takes time before a request can run; None if there is nothing. It may run in other threads.

        Its result comes back as `NewRequest.prepared`, every time that the request is new to the executor.
        """

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Begin a step; what is returned waits for its result. Both may raise anything: the step is then void."""

    def diagnose(self, error: Exception) -> Fault: ...

    def warm_up(self) -> None:
        """Begin to load what is not needed until a request asks for it. To be called once, when nothing runs."""


class EngineCore:
    """A scheduler and an executor. Used by one thread.

    `on_first_step` is told which requests are about to run for the first time (or again), before the step that may be
    their last.
    """

    def __init__(
        self,
        info: EngineInfo,
        executor: Executor,
        *,
        batch_wait_ms: float = 50.0,
        target_itl_ms: float | None = None,
        target_ttft_ms: float = 500.0,
        clock: Callable[[], float] = time.monotonic,
        on_first_step: Callable[[list[str]], None] = lambda request_ids: None,
    ) -> None:
        limits = SchedulerLimits(
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            max_model_len=info.max_model_len,
            eos_token_ids=frozenset(info.eos_token_ids),
            batching=info.batching,
            batch_wait_s=batch_wait_ms / 1000,
            enable_prefix_caching=info.enable_prefix_caching,
            target_itl_s=None if target_itl_ms is None else target_itl_ms / 1000,
            target_ttft_s=target_ttft_ms / 1000,
            weighs_drafts=info.speculation == "auto",
            has_mtp_head=info.has_mtp_head,
            has_states=info.state_bytes > 0,
        )
        groups = info.cache_groups or [CacheGroup(info.num_kv_blocks, num_layers=1)]
        self._states = StateCache(info.num_state_snapshots) if info.num_state_snapshots else None
        self._blocks = BlockManager(groups, info.block_size, () if self._states is None else [self._states])
        self.scheduler = Scheduler(limits, self._blocks, clock, self._states)
        self._executor = executor
        self._is_warm = not info.warms_grammars
        self._preparation = Preparation(executor)
        self._clock = clock
        self._on_first_step = on_first_step
        self._ahead: _LaunchedStep | None = None
        self._num_culprits = 0  # in a row
        self._slot_watch: SlotWatch | None = None  # while somebody watches

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._preparation) or self._ahead is not None

    def wait_time_s(self) -> float | None:
        """Return how long `step` will have nothing to run although there is work; None if it has now."""
        if self._ahead is not None:
            return None
        waits_s = [self._preparation.wait_time_s()] if self._preparation else []
        if self.scheduler.has_work:
            waits_s.append(self.scheduler.wait_time_s() or 0.0)
        return min(waits_s, default=0.0) or None

    def add_request(self, request: AddRequest) -> None:
        if not self._preparation.hold(request):
            self.scheduler.add(request)

    def abort_requests(self, request_ids: list[str]) -> None:
        self._preparation.abort(request_ids)
        self.scheduler.abort(request_ids)

    def warm_up(self) -> None:
        """Let the executor load, once, what the first request of some kind would wait for; while nothing runs."""
        if not self._is_warm:
            self._is_warm = True
            self._executor.warm_up()

    def watch_slots(self, *, is_on: bool) -> None:
        """Begin to report what is in the slots, all of it at first, or stop."""
        self._slot_watch = SlotWatch(self.scheduler.slots, self._clock) if is_on else None

    def step(self) -> StepOutputs:
        """Bring one iteration to its end, and with an executor that runs ahead begin the next.

        What fails is tried again, without the request that made it fail: that one ends with an error. Raises the
        executor's error if it cannot go on.
        """
        try:
            return self._step()
        except BaseException:  # an interrupt, too, after which the requests may be aborted
            self._ahead = None
            self.scheduler.void_steps()
            raise

    def _step(self) -> StepOutputs:
        started = self._clock()
        ready, deltas = self._preparation.settle()
        for request, prepared in ready:
            self.scheduler.add(request, prepared)
        launched, self._ahead = self._ahead or self._launch(), None
        if launched is None:
            return self.news(deltas)
        deltas += self._end_step(launched, started)
        ended_at = self._clock()
        stats = self._with_state(launched.step.stats)
        stats.step_time_s = ended_at - started
        stats.num_sampled_tokens = sum(len(delta.token_ids) for delta in deltas)
        return StepOutputs(deltas=deltas, stats=stats, slots=self._slot_report(), ended_at=ended_at)

    def news(self, deltas: list[RequestDelta] | None = None) -> StepOutputs:
        """Return the state of the moment, as between two steps, with the deltas that no step brought."""
        return StepOutputs(deltas=deltas or [], stats=self.stats(), slots=self._slot_report())

    def _slot_report(self) -> SlotReport | None:
        return None if self._slot_watch is None else self._slot_watch.report()

    def _end_step(self, launched: "_LaunchedStep", started: float) -> list[RequestDelta]:
        if self._executor.runs_ahead and self.scheduler.may_run_ahead:
            self._ahead = self._launch()
        try:
            result = launched.result()
        except Exception as error:
            return self._retry(error)
        self._num_culprits = 0
        deltas = self.scheduler.update(launched.step, result)
        self.scheduler.observe(launched.step, self._clock() - started)
        return deltas

    def _launch(self) -> "_LaunchedStep | None":
        step = self.scheduler.schedule()
        if self._slot_watch is not None:
            self._slot_watch.note()
        if not step.plan.scheduled:
            return None
        if step.plan.new_requests:
            self._on_first_step([new.request_id for new in step.plan.new_requests])
        try:
            return _LaunchedStep(step, self._executor.launch(step.plan))
        except Exception as error:
            return _LaunchedStep(step, partial(_raise, error))

    def _retry(self, error: Exception) -> list[RequestDelta]:
        self._ahead = None
        fault = self._executor.diagnose(error)
        if fault == "engine":
            raise error
        logger.error("a step failed, and is tried again with fewer requests", exc_info=error)
        deltas = self.scheduler.retry(f"the step failed: {type(error).__name__}", is_out_of_memory=fault == "memory")
        self._num_culprits += len(deltas)
        if self._num_culprits >= _MAX_CULPRITS:
            raise error
        return deltas

    def stats(self) -> StepStats:
        """Return the state of the moment, as between two steps, and the time and energy since it was last asked."""
        return self._with_state(StepStats())

    def _with_state(self, stats: StepStats) -> StepStats:
        """Fill in the gauges, and what is counted by the clock."""
        stats.num_running = self.scheduler.num_running
        stats.num_waiting = self.scheduler.num_waiting + len(self._preparation)
        stats.num_slots = self.scheduler.num_slots
        stats.num_running_tokens = self.scheduler.num_running_tokens
        stats.slot_s, stats.slot_capacity_s = self.scheduler.take_slot_seconds()
        stats.num_kv_blocks = self._blocks.num_blocks
        stats.num_kv_blocks_used = self._blocks.num_used_blocks
        if self._states is not None:
            stats.num_snapshots, stats.num_snapshots_used = self._states.num_rows, self._states.num_snapshots
            counts = self._states.take_counts()
            stats.num_snapshot_loads, stats.num_snapshot_saves = counts.num_loads, counts.num_saves
            stats.num_snapshot_evictions = counts.num_evictions
        if (monitor := self._executor.device_monitor) is not None:
            utilization, used_bytes, total_bytes = monitor.sample()
            stats.device_utilization = utilization
            stats.device_memory_used_bytes = used_bytes
            stats.device_memory_total_bytes = total_bytes
            stats.gpu_energy_j = monitor.take_energy_j()
        return stats


@dataclass(frozen=True, slots=True)
class _LaunchedStep:
    step: ScheduledStep
    result: Callable[[], StepResult]


def _raise(error: Exception) -> NoReturn:
    raise error
