"""The central loop's body: schedule, execute, update. One `step` is one iteration over the batch.

Driven by the engine process, by `LLM` and by tests. Knows nothing of processes, transports or tensors: the
executor is handed in.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from engine.block_manager import BlockManager
from engine.messages import AddRequest, EngineInfo, RequestDelta, StepOutputs, StepPlan, StepResult, StepStats
from engine.preparation import Preparation
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler, SchedulerLimits

if TYPE_CHECKING:
    from engine.device import DeviceMonitor

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Whoever runs the model: `engine.model_runner.ModelRunner`, or a fake in the tests."""

    device_monitor: "DeviceMonitor | None"

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        """Begin what takes time before a request can run; None if there is nothing. It may run in other threads."""

    def execute(self, plan: StepPlan) -> StepResult: ...


class EngineCore:
    """A scheduler and an executor. Used by one thread."""

    def __init__(
        self,
        info: EngineInfo,
        executor: Executor,
        *,
        batch_wait_ms: float = 50.0,
        target_itl_ms: float | None = None,
        clock: Callable[[], float] = time.monotonic,
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
        )
        self._blocks = BlockManager(info.num_kv_blocks, info.block_size)
        self.scheduler = Scheduler(limits, self._blocks, clock)
        self._executor = executor
        self._preparation = Preparation(executor)
        self._clock = clock

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._preparation)

    def wait_time_s(self) -> float | None:
        """How long `step` will have nothing to run although there is work; None: it has now."""
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

    def step(self) -> StepOutputs:
        """Run one iteration. A fault of the executor ends the requests of that step, with an error."""
        started = self._clock()
        ready, deltas = self._preparation.settle()
        for request in ready:
            self.scheduler.add(request)
        plan = self.scheduler.schedule()
        if plan.scheduled:
            deltas += self._run(plan, started)
        return StepOutputs(deltas=deltas, stats=self._step_stats(deltas, self._clock() - started))

    def _run(self, plan: StepPlan, started: float) -> list[RequestDelta]:
        try:
            result = self._executor.execute(plan)
        except Exception as error:
            logger.exception("step of %d requests, %d tokens failed", len(plan.scheduled), plan.num_tokens)
            return self.scheduler.fail(plan, f"the step failed: {type(error).__name__}")
        deltas = self.scheduler.update(plan, result)
        self.scheduler.observe(self._clock() - started)
        return deltas

    def stats(self) -> StepStats:
        """The state of the moment, as between two steps."""
        monitor = self._executor.device_monitor
        utilization, used_bytes, total_bytes = (None, None, None) if monitor is None else monitor.sample()
        return StepStats(
            num_running=self.scheduler.num_running,
            num_waiting=self.scheduler.num_waiting + len(self._preparation),
            num_slots=self.scheduler.num_slots,
            num_kv_blocks=self._blocks.num_blocks,
            num_kv_blocks_used=self._blocks.num_used_blocks,
            device_utilization=utilization,
            device_memory_used_bytes=used_bytes,
            device_memory_total_bytes=total_bytes,
        )

    def _step_stats(self, deltas: list[RequestDelta], step_time_s: float) -> StepStats:
        counts = self.scheduler.counts
        return msgspec.structs.replace(
            self.stats(),
            step_time_s=step_time_s,
            num_prefill_tokens=counts.num_prefill_tokens,
            num_decode_tokens=counts.num_decode_tokens,
            num_sampled_tokens=sum(len(delta.token_ids) for delta in deltas),
            num_preemptions=counts.num_preemptions,
            prefix_cache_queries=counts.prefix_cache_queries,
            prefix_cache_hits=counts.prefix_cache_hits,
            num_slots_refilled=counts.num_slots_refilled,
        )
