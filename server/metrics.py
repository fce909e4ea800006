"""What /metrics says: counted in plain numbers here, written out by prometheus-client.

An `EngineObserver` that is called on the event loop for every step and every token, so counting must cost next to
nothing: histograms are lists and a bisection, and prometheus-client only sees them when somebody scrapes. No label
comes from user input. Which metrics there are, and how they are written, is in `server.exposition`.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector

from orcinus.config.api_keys import MAX_NAMED_KEYS
from orcinus.config.version import VERSION
from orcinus.engine.frontend.observer import EngineObserver
from orcinus.engine.messages import EngineInfo, StepStats
from orcinus.engine.outputs import Outcome, RequestTiming, RequestUsage
from orcinus.server.exposition.declarations import (
    ADMISSION_LIMITS,
    ENDS,
    METRICS,
    OUTCOMES,
    REJECTED,
    REJECTION_REASONS,
    SECONDS,
    RejectionReason,
)
from orcinus.server.exposition.engines import EngineMetrics
from orcinus.server.exposition.families import Histogram, Labels, family
from orcinus.server.exposition.load import Load
from orcinus.server.exposition.vllm_names import vllm_families

OTHER_KEYS = "(others)"  # no key may be called so

__all__ = ["METRICS", "OUTCOMES", "REJECTION_REASONS", "SECONDS", "Histogram", "Metrics", "RejectionReason"]


class Metrics(EngineObserver):
    """The numbers of one server, as it observes its engine; a collector in a registry of its own."""

    def __init__(
        self,
        model_names: Sequence[str] = (),
        routes: Iterable[tuple[str, str]] = (),
        *,
        names: Collection[str] = ("orcinus",),
        cpu_energy_j: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Have series from the start for the names that are served, and for each route and method that there is.

        `names` are those that metrics are exposed by: orcinus, vllm or both. `cpu_energy_j` is asked when they are.
        """
        self.registry = CollectorRegistry()
        self.step_listener: Callable[[StepStats], None] | None = None  # told of each step, while somebody watches
        self.usage_listener: Callable[[RequestUsage], None] | None = None  # told of each request that has ended
        self._model_names = tuple(model_names)
        self._names = frozenset(names)
        self._cpu_energy_j = cpu_energy_j
        self._key_name: Callable[[str], str | None] = lambda client: None
        self._stats = StepStats()
        self._info: EngineInfo | None = None
        self._slot_s = self._slot_capacity_s = 0.0
        self._gpu_energy_j: float | None = None
        self._engines = EngineMetrics()
        self._counters = Counter[str]()
        self._outcomes = Counter[tuple[str, ...]]({(outcome,): 0 for outcome in OUTCOMES})
        self._rejected = Counter[tuple[str, ...]]({(reason,): 0 for reason in REJECTION_REASONS})
        self._blocked = Counter[tuple[str, ...]]({(reason,): 0 for reason in ADMISSION_LIMITS})
        self._tried_drafts = Counter[tuple[str, ...]]()
        self._accepted_drafts = Counter[tuple[str, ...]]()
        self._key_requests = Counter[tuple[str, ...]]()
        self._key_prompt_tokens = Counter[tuple[str, ...]]()
        self._key_generation_tokens = Counter[tuple[str, ...]]()
        self._http = Counter[tuple[str, ...]]({(route, method, "200"): 0 for route, method in routes})
        self._http_in_progress = 0
        self._num_preparing = 0
        self._histograms = {
            spec.name: Histogram(spec.bounds) for spec in METRICS if spec.kind == "histogram" and not spec.labels
        }
        self._step_time = self._histograms["orcinus_step_time_seconds"]
        self._tokens_per_step = self._histograms["orcinus_tokens_per_step"]
        self._ttft = self._histograms["orcinus_time_to_first_token_seconds"]
        self._inter_token = self._histograms["orcinus_inter_token_latency_seconds"]
        self._queue_time = self._histograms["orcinus_queue_time_seconds"]
        self._e2e: dict[Labels, Histogram] = {(outcome,): Histogram(SECONDS) for outcome in ENDS}
        self._durations = defaultdict[tuple[str, ...], Histogram](lambda: Histogram(SECONDS))
        for route, _, _ in self._http:
            self._durations[(route,)]  # there from the start
        self._loop_lag = self._histograms["orcinus_event_loop_lag_seconds"]
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    # --- EngineObserver -----------------------------------------------------------------------------

    def on_step(self, stats: StepStats) -> None:
        self._stats = stats
        self._slot_s += stats.slot_s
        self._slot_capacity_s += stats.slot_capacity_s
        counters = self._counters
        counters["orcinus_state_snapshot_loads_total"] += stats.num_snapshot_loads
        counters["orcinus_state_snapshot_saves_total"] += stats.num_snapshot_saves
        counters["orcinus_state_snapshot_evictions_total"] += stats.num_snapshot_evictions
        if stats.gpu_energy_j is not None:
            self._gpu_energy_j = (self._gpu_energy_j or 0.0) + stats.gpu_energy_j
        num_tokens = stats.num_prefill_tokens + stats.num_decode_tokens
        if not num_tokens:
            return  # a heartbeat
        if self.step_listener is not None:
            self.step_listener(stats)
        self._step_time.observe(stats.step_time_s)
        self._tokens_per_step.observe(num_tokens)
        counters["orcinus_prefill_tokens_total"] += stats.num_prefill_tokens
        counters["orcinus_forced_tokens_total"] += stats.num_forced_tokens
        counters["orcinus_draft_tokens_proposed_total"] += stats.num_draft_tokens
        counters["orcinus_draft_tokens_accepted_total"] += stats.num_accepted_drafts
        counters["orcinus_preemptions_total"] += stats.num_preemptions
        counters["orcinus_prefix_cache_queries_total"] += stats.prefix_cache_queries
        counters["orcinus_prefix_cache_hits_total"] += stats.prefix_cache_hits
        counters["orcinus_slots_refilled_total"] += stats.num_slots_refilled
        for limit in stats.blocked_by:
            self._blocked[(limit,)] += 1
        for position, (num_tried, num_accepted) in enumerate(
            zip(stats.tried_drafts, stats.accepted_drafts, strict=True)
        ):
            self._tried_drafts[(str(position),)] += num_tried
            self._accepted_drafts[(str(position),)] += num_accepted

    def on_engine(self, index: int, *, is_up: bool, stats: StepStats) -> None:
        self._engines.on_engine(index, is_up=is_up, stats=stats)

    def on_first_output(self, queue_time_s: float) -> None:
        self._queue_time.observe(queue_time_s)

    def on_first_token(self, ttft_s: float) -> None:
        self._ttft.observe(ttft_s)
        self._counters["orcinus_generation_tokens_total"] += 1

    def on_next_tokens(self, interval_s: float, num_tokens: int) -> None:
        if num_tokens:
            self._inter_token.observe(interval_s / num_tokens, num_tokens)
            self._counters["orcinus_generation_tokens_total"] += num_tokens

    def on_choice_done(self, outcome: Outcome, e2e_s: float, num_prompt_tokens: int, num_output_tokens: int) -> None:
        self._outcomes[(outcome,)] += 1
        self._e2e[(outcome,)].observe(e2e_s)
        self._counters["orcinus_prompt_tokens_total"] += num_prompt_tokens
        if num_prompt_tokens:
            self._histograms["orcinus_request_prompt_tokens"].observe(num_prompt_tokens)
        if num_output_tokens:
            self._histograms["orcinus_request_generation_tokens"].observe(num_output_tokens)

    def on_choice_complete(self, timing: RequestTiming, num_output_tokens: int) -> None:
        histograms = self._histograms
        histograms["orcinus_prefill_time_seconds"].observe(timing.prefill_time_s)
        histograms["orcinus_decode_time_seconds"].observe(timing.decode_time_s)
        histograms["orcinus_inference_time_seconds"].observe(timing.prefill_time_s + timing.decode_time_s)
        if num_output_tokens > 1:
            mean_s = timing.decode_time_s / (num_output_tokens - 1)
            histograms["orcinus_time_per_output_token_seconds"].observe(mean_s)

    def on_client_usage(self, client: str, outcome: Outcome, num_prompt_tokens: int, num_output_tokens: int) -> None:
        if (name := self._key_name(client)) is not None:
            key = self._key_label(name)
            self._key_requests[(key, outcome)] += 1
            self._key_prompt_tokens[(key,)] += num_prompt_tokens
            self._key_generation_tokens[(key,)] += num_output_tokens

    def on_request_usage(self, usage: RequestUsage) -> None:
        if self.usage_listener is not None:
            self.usage_listener(usage)

    def on_restart(self) -> None:
        self._counters["orcinus_engine_restarts_total"] += 1

    def on_resumed(self, num_choices: int) -> None:
        self._counters["orcinus_requests_resumed_total"] += num_choices

    def on_quarantined(self) -> None:
        self._counters["orcinus_requests_quarantined_total"] += 1

    # --- who watches ---------------------------------------------------------------------------------

    @property
    def stats(self) -> StepStats:
        """The numbers of the last step, whose gauges are of all engines."""
        return self._stats

    def counted(self, counter: str) -> int:
        """Return the value of a counter without labels."""
        return self._counters[counter]

    def observed(self, histogram: str) -> tuple[int, float]:
        """Return how often a histogram without labels has observed something, and the sum of what."""
        return self._histograms[histogram].count_and_sum

    # --- the server ---------------------------------------------------------------------------------

    def on_ready(self, info: EngineInfo, model_name: str) -> None:
        """Note what runs, and its sizes before the first step."""
        self._info = msgspec.structs.replace(info, model=model_name)
        if not self._stats.num_slots:
            self._stats = StepStats(
                num_slots=info.max_num_seqs,
                num_kv_blocks=info.num_kv_blocks,
                num_snapshots=info.num_state_snapshots,
            )

    def on_rejected(self, reason: RejectionReason, num_choices: int) -> None:
        """Count a request that was refused before the engine had it."""
        self._rejected[(reason,)] += num_choices
        self._outcomes[(REJECTED,)] += num_choices

    def name_keys(self, key_name: Callable[[str], str | None]) -> None:
        """Count by key from now on. `key_name` gives the name of the key that a client has; None: it has no name.

        Names become labels, so no client may choose one. There may be so many of them as a key file may have; names
        that come later, in files that are read again, are one label together.
        """
        self._key_name = key_name

    def _key_label(self, name: str) -> str:
        is_known = (name,) in self._key_prompt_tokens or len(self._key_prompt_tokens) < MAX_NAMED_KEYS
        return name if is_known else OTHER_KEYS

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Count a request as being prepared in the block."""
        started = time.monotonic()
        self._num_preparing += 1
        try:
            yield
        finally:
            self._num_preparing -= 1
            self._histograms["orcinus_preparation_time_seconds"].observe(time.monotonic() - started)

    def on_http_start(self) -> None:
        self._http_in_progress += 1

    def on_http_end(self, route: str, method: str, status: int, duration_s: float) -> None:
        """Count a request that was answered. `route` and `method` must come from a fixed set."""
        self._http_in_progress -= 1
        self._durations[(route,)].observe(duration_s)
        self._http[(route, method, str(status))] += 1

    def on_connection_refused(self, status: int) -> None:
        """Count an answer that a connection got before there was a request, or in place of one."""
        self._http[("connection", "other", str(status))] += 1

    def on_loop_lag(self, lag_s: float) -> None:
        self._loop_lag.observe(lag_s)

    def exposition(self, accept: str | None = None) -> tuple[bytes, str]:
        """Return the text of /metrics and its content type, in the format that the scraper accepts."""
        encode, content_type = choose_encoder(accept or "")
        if not content_type.startswith("application/openmetrics-text"):
            return encode(self.registry), content_type
        # It would write the colon of vLLM's names as an underscore, for names that need escapes, which ours do not.
        with_options: Any = encode
        return with_options(self.registry, escaping=openmetrics.ALLOWUTF8), content_type

    def collect(self) -> Iterator[Metric]:
        """Give all metrics to prometheus-client."""
        values = self._values()
        if "orcinus" in self._names:
            for spec in METRICS:
                yield family(spec, values[spec.name])
        if "vllm" in self._names:
            yield from vllm_families(values.__getitem__, self._info, self._model_names[0] if self._model_names else "")

    def _values(self) -> dict[str, Mapping[Labels, Any]]:
        """Return the values of all metrics, each by its labels."""
        unlabelled: dict[str, Any] = {spec.name: self._counters[spec.name] for spec in METRICS if not spec.labels}
        unlabelled |= self._histograms | self._gauges()
        unlabelled["orcinus_slot_seconds_total"] = self._slot_s
        unlabelled["orcinus_slot_capacity_seconds_total"] = self._slot_capacity_s
        values: dict[str, Mapping[Labels, Any]] = {name: {(): value} for name, value in unlabelled.items()}
        return values | self._labelled()

    def _labelled(self) -> dict[str, Mapping[Labels, Any]]:
        return {
            "orcinus_info": self._runs(),
            "orcinus_model_info": {(name,): 1.0 for name in self._model_names},
            "orcinus_requests_total": self._outcomes,
            "orcinus_requests_rejected_total": self._rejected,
            "orcinus_admission_blocked_total": self._blocked,
            "orcinus_draft_tokens_proposed_by_position_total": self._tried_drafts,
            "orcinus_draft_tokens_accepted_by_position_total": self._accepted_drafts,
            "orcinus_energy_joules_total": self._energy(),
            "orcinus_key_requests_total": self._key_requests,
            "orcinus_key_prompt_tokens_total": self._key_prompt_tokens,
            "orcinus_key_generation_tokens_total": self._key_generation_tokens,
            "orcinus_http_requests_total": self._http,
            "orcinus_e2e_latency_seconds": self._e2e,
            "orcinus_http_request_duration_seconds": self._durations,
            **self._engines.values(),
        }

    def _runs(self) -> dict[Labels, float]:
        info = self._info
        if info is None:
            return {}
        return {(VERSION, info.model, info.dtype, info.device, info.kv_cache_dtype or info.dtype): 1.0}

    def _energy(self) -> dict[Labels, float]:
        joules = {"gpu": self._gpu_energy_j, "cpu": self._cpu_energy_j()}
        return {(source,): value for source, value in joules.items() if value is not None}

    def _gauges(self) -> dict[str, float | None]:
        stats = self._stats
        return {
            "orcinus_slots": stats.num_slots,
            "orcinus_slots_in_use": stats.num_running,
            "orcinus_slot_utilization_ratio": _ratio(stats.num_running, stats.num_slots),
            "orcinus_queue_depth": stats.num_waiting,
            "orcinus_running_tokens": stats.num_running_tokens,
            "orcinus_kv_blocks": stats.num_kv_blocks,
            "orcinus_kv_blocks_in_use": stats.num_kv_blocks_used,
            "orcinus_kv_cache_utilization_ratio": _ratio(stats.num_kv_blocks_used, stats.num_kv_blocks),
            "orcinus_state_snapshots": stats.num_snapshots,
            "orcinus_state_snapshots_in_use": stats.num_snapshots_used,
            "orcinus_device_utilization_ratio": stats.device_utilization,
            "orcinus_device_memory_used_bytes": stats.device_memory_used_bytes,
            "orcinus_device_memory_total_bytes": stats.device_memory_total_bytes,
            "orcinus_requests_preparing": self._num_preparing,
            "orcinus_http_requests_in_progress": self._http_in_progress,
        }

    def load(self) -> Load:
        """Return what the line in the log is made of, as it is now."""
        stats, counters = self._stats, self._counters
        return Load(
            num_slots=stats.num_slots,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            num_running_tokens=stats.num_running_tokens,
            kv_utilization=_ratio(stats.num_kv_blocks_used, stats.num_kv_blocks),
            slot_s=self._slot_s,
            slot_capacity_s=self._slot_capacity_s,
            num_prefill_tokens=counters["orcinus_prefill_tokens_total"],
            num_generated_tokens=counters["orcinus_generation_tokens_total"],
            prefix_cache_queries=counters["orcinus_prefix_cache_queries_total"],
            prefix_cache_hits=counters["orcinus_prefix_cache_hits_total"],
            num_preemptions=counters["orcinus_preemptions_total"],
            num_restarts=counters["orcinus_engine_restarts_total"],
            blocked={limit: number for (limit,), number in self._blocked.items()},
            outcomes={outcome: number for (outcome,), number in self._outcomes.items()},
            ttft_s=self._ttft.sum,
            num_first_tokens=self._ttft.count,
            inter_token_s=self._inter_token.sum,
            num_next_tokens=self._inter_token.count,
            energy_j=sum(energy.values()) if (energy := self._energy()) else None,
        )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
