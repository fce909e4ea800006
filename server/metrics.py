"""What /metrics says: every metric declared once, counted in plain numbers, written out by prometheus-client.

An `EngineObserver` that is called on the event loop for every step and every token, so counting must cost next to
nothing: histograms are lists and a bisection, and prometheus-client only sees them when somebody scrapes. No label
comes from user input.
"""

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from orcinus.config.version import VERSION
from orcinus.engine.frontend.observer import EngineObserver
from orcinus.engine.messages import EngineInfo, StepStats
from orcinus.engine.outputs import Outcome
from orcinus.server.engine_metrics import COUNTERS, GAUGES, EngineMetrics

ENDS: tuple[Outcome, ...] = ("stop", "length", "abort", "timeout", "error")
REJECTED = "rejected"
OUTCOMES = (*ENDS, REJECTED)

RejectionReason = Literal["invalid", "too_long", "queue_full", "rate_limited", "draining", "unavailable", "error"]
REJECTION_REASONS: tuple[RejectionReason, ...] = get_args(RejectionReason)

# One millisecond to five minutes, and half a step beyond on both sides.
SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)  # fmt: skip
TOKENS = tuple(float(2**exponent) for exponent in range(15))


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric: `name` is what a query says (counters with their `_total`)."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("orcinus_info", "gauge", "Always 1; its labels say what runs.", ("version", "model", "dtype", "device")),
    MetricSpec(
        "orcinus_model_info",
        "gauge",
        "Always 1, once for each name that the model is served by; to be joined to other metrics by instance.",
        ("model_name",),
    ),
    MetricSpec("orcinus_slots", "gauge", "Sequences that can run at once (max_num_seqs)."),
    MetricSpec("orcinus_slots_in_use", "gauge", "Sequences that run now."),
    MetricSpec("orcinus_slot_utilization_ratio", "gauge", "Slots in use over slots, 0 to 1."),
    MetricSpec("orcinus_queue_depth", "gauge", "Sequences that wait for a slot."),
    MetricSpec("orcinus_kv_blocks", "gauge", "Blocks of the KV cache; layers with a window have others."),
    MetricSpec("orcinus_kv_blocks_in_use", "gauge", "Those that running sequences hold (cached ones are free)."),
    MetricSpec("orcinus_kv_cache_utilization_ratio", "gauge", "Blocks in use over blocks, 0 to 1."),
    MetricSpec(
        "orcinus_device_utilization_ratio",
        "gauge",
        "How busy the device is, 0 to 1: NVML's figure for a GPU, the engine's share of all cores on a CPU.",
    ),
    MetricSpec(
        "orcinus_device_memory_used_bytes",
        "gauge",
        "Memory in use: of the device for a GPU, of the engine process on a CPU.",
    ),
    MetricSpec("orcinus_device_memory_total_bytes", "gauge", "Memory of the device, or of the machine on a CPU."),
    MetricSpec(
        "orcinus_requests_total",
        "counter",
        "Sequences, not HTTP requests, by how they ended: a request counts prompts times n. stop, length, abort (the"
        " client left), timeout, error, rejected (never admitted).",
        ("outcome",),
    ),
    MetricSpec(
        "orcinus_requests_rejected_total",
        "counter",
        "Sequences that were never admitted, by reason: invalid (the client's mistake, a 4xx), too_long (for the"
        " context), queue_full, rate_limited (limits of one key), draining, unavailable (loading, or no engine), error."
        " A refused request counts prompts times n, as if it had been admitted; once where its body was not read or"
        " says neither. Their sum is outcome rejected of orcinus_requests_total.",
        ("reason",),
    ),
    MetricSpec(
        "orcinus_prompt_tokens_total", "counter", "Prompt tokens of ended requests, cached ones included."
    ),
    MetricSpec("orcinus_generation_tokens_total", "counter", "Generated tokens, as they come; usage counts the same."),
    MetricSpec("orcinus_prefill_tokens_total", "counter", "Prompt tokens computed (cached ones are not)."),
    MetricSpec("orcinus_preemptions_total", "counter", "Sequences that gave up their KV blocks and were put back."),
    MetricSpec("orcinus_prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache."),
    MetricSpec("orcinus_prefix_cache_hits_total", "counter", "Prompt tokens found there."),
    MetricSpec("orcinus_slots_refilled_total", "counter", "Slots given to a waiting sequence."),
    MetricSpec("orcinus_engine_restarts_total", "counter", "Times that the engine ended and another one was started."),
    MetricSpec(
        "orcinus_requests_resumed_total",
        "counter",
        "Sequences that were in flight when the engine ended and that the next one was given.",
    ),
    MetricSpec(
        "orcinus_requests_quarantined_total",
        "counter",
        "Requests given up with an error because the engine ended twice while it ran them.",
    ),
    MetricSpec("orcinus_step_time_seconds", "histogram", "Time of one iteration of the batch.", bounds=SECONDS),
    MetricSpec("orcinus_tokens_per_step", "histogram", "Tokens computed in one iteration.", bounds=TOKENS),
    MetricSpec(
        "orcinus_time_to_first_token_seconds",
        "histogram",
        "From the head of a request to the first token: its body, its template and its grammar included.",
        bounds=SECONDS,
    ),
    MetricSpec("orcinus_inter_token_latency_seconds", "histogram", "Between two tokens of a sequence.", bounds=SECONDS),
    MetricSpec("orcinus_queue_time_seconds", "histogram", "From admission to a slot.", bounds=SECONDS),
    MetricSpec(
        "orcinus_e2e_latency_seconds",
        "histogram",
        "From the head of a request to the end of a sequence, by how it ended.",
        ("outcome",),
        SECONDS,
    ),
    MetricSpec(
        "orcinus_http_requests_total",
        "counter",
        "HTTP requests; status 499: the client left before the answer; route other: no such path; route connection:"
        " what was answered before there was a request (no HTTP, a bound, one connection too many).",
        ("route", "method", "status"),
    ),
    MetricSpec(
        "orcinus_http_request_duration_seconds",
        "histogram",
        "From the head of an HTTP request to the end of its answer, of a stream to its last event.",
        ("route",),
        SECONDS,
    ),
    MetricSpec(
        "orcinus_requests_preparing",
        "gauge",
        "Requests on their way to the queue: read, parsed, rendered, tokenized, their grammars tried out.",
    ),
    MetricSpec(
        "orcinus_preparation_time_seconds",
        "histogram",
        "From the head of a request to its admission, its refusal or its end before.",
        bounds=SECONDS,
    ),
    MetricSpec("orcinus_http_requests_in_progress", "gauge", "HTTP requests being answered."),
    MetricSpec(
        "orcinus_event_loop_lag_seconds",
        "histogram",
        "How late the server's event loop came round, asked ten times a second. All that it does meanwhile for one"
        " request, all others wait for; some milliseconds are normal.",
        bounds=SECONDS,
    ),
    *(MetricSpec(name, "gauge", text, ("engine",)) for name, text in GAUGES.items()),
    *(MetricSpec(name, "counter", text, ("engine",)) for name, text in COUNTERS.items()),
)  # fmt: skip

_SPECS = {spec.name: spec for spec in METRICS}


class Histogram:
    """Counts per bucket; `observe` is all that happens between scrapes."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += weight
        self._sum += value * weight

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        """Add what was observed to a metric, under these labels."""
        buckets, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(labels, buckets, self._sum)


class Metrics(EngineObserver):
    """The numbers of one server, as it observes its engine; a collector in a registry of its own."""

    def __init__(self, model_names: Sequence[str] = (), routes: Iterable[tuple[str, str]] = ()) -> None:
        """Have series from the start for the names that are served, and for each route and method that there is."""
        self.registry = CollectorRegistry()
        self._model_names = tuple(model_names)
        self._stats = StepStats()
        self._info: tuple[str, ...] | None = None
        self._engines = EngineMetrics()
        self._counters = Counter[str]()
        self._outcomes = Counter[tuple[str, ...]]({(outcome,): 0 for outcome in OUTCOMES})
        self._rejected = Counter[tuple[str, ...]]({(reason,): 0 for reason in REJECTION_REASONS})
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
        self._e2e = {(outcome,): Histogram(SECONDS) for outcome in ENDS}
        self._durations = defaultdict[tuple[str, ...], Histogram](lambda: Histogram(SECONDS))
        for route, _, _ in self._http:
            self._durations[(route,)]  # there from the start
        self._loop_lag = self._histograms["orcinus_event_loop_lag_seconds"]
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    # --- EngineObserver -----------------------------------------------------------------------------

    def on_step(self, stats: StepStats) -> None:
        self._stats = stats
        num_tokens = stats.num_prefill_tokens + stats.num_decode_tokens
        if not num_tokens:
            return  # a heartbeat
        self._step_time.observe(stats.step_time_s)
        self._tokens_per_step.observe(num_tokens)
        counters = self._counters
        counters["orcinus_prefill_tokens_total"] += stats.num_prefill_tokens
        counters["orcinus_preemptions_total"] += stats.num_preemptions
        counters["orcinus_prefix_cache_queries_total"] += stats.prefix_cache_queries
        counters["orcinus_prefix_cache_hits_total"] += stats.prefix_cache_hits
        counters["orcinus_slots_refilled_total"] += stats.num_slots_refilled

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

    def on_restart(self) -> None:
        self._counters["orcinus_engine_restarts_total"] += 1

    def on_resumed(self, num_choices: int) -> None:
        self._counters["orcinus_requests_resumed_total"] += num_choices

    def on_quarantined(self) -> None:
        self._counters["orcinus_requests_quarantined_total"] += 1

    # --- the server ---------------------------------------------------------------------------------

    def on_ready(self, info: EngineInfo, model_name: str) -> None:
        """Note what runs, and its sizes before the first step."""
        self._info = (VERSION, model_name, info.dtype, info.device)
        if not self._stats.num_slots:
            self._stats = StepStats(num_slots=info.max_num_seqs, num_kv_blocks=info.num_kv_blocks)

    def on_rejected(self, reason: RejectionReason, num_choices: int) -> None:
        """Count a request that was refused before the engine had it."""
        self._rejected[(reason,)] += num_choices
        self._outcomes[(REJECTED,)] += num_choices

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
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Give all metrics to prometheus-client."""
        gauges = self._gauges()
        infos = {"orcinus_info": [self._info] if self._info else [], "orcinus_model_info": self._served_names()}
        counters = {
            "orcinus_requests_total": self._outcomes,
            "orcinus_requests_rejected_total": self._rejected,
            "orcinus_http_requests_total": self._http,
        }
        histograms: dict[str, Mapping[Any, Histogram]] = {
            "orcinus_e2e_latency_seconds": self._e2e,
            "orcinus_http_request_duration_seconds": self._durations,
        }
        by_engine: dict[str, Any] = self._engines.values()
        for name, spec in _SPECS.items():
            if name in by_engine:
                yield (_gauge if spec.kind == "gauge" else _counter)(spec, by_engine[name])
            elif spec.kind == "histogram":
                yield _histogram(spec, histograms[name] if spec.labels else {(): self._histograms[name]})
            elif spec.kind == "counter":
                yield _counter(spec, counters[name] if spec.labels else {(): self._counters[name]})
            elif name in infos:
                yield _gauge(spec, dict.fromkeys(infos[name], 1.0))
            else:
                yield _gauge(spec, {(): gauges[name]})

    def _served_names(self) -> list[tuple[str, ...]]:
        return [(name,) for name in self._model_names]

    def _gauges(self) -> dict[str, float | None]:
        stats = self._stats
        return {
            "orcinus_slots": stats.num_slots,
            "orcinus_slots_in_use": stats.num_running,
            "orcinus_slot_utilization_ratio": stats.num_running / stats.num_slots if stats.num_slots else 0.0,
            "orcinus_queue_depth": stats.num_waiting,
            "orcinus_kv_blocks": stats.num_kv_blocks,
            "orcinus_kv_blocks_in_use": stats.num_kv_blocks_used,
            "orcinus_kv_cache_utilization_ratio": stats.num_kv_blocks_used / stats.num_kv_blocks
            if stats.num_kv_blocks
            else 0.0,
            "orcinus_device_utilization_ratio": stats.device_utilization,
            "orcinus_device_memory_used_bytes": stats.device_memory_used_bytes,
            "orcinus_device_memory_total_bytes": stats.device_memory_total_bytes,
            "orcinus_requests_preparing": self._num_preparing,
            "orcinus_http_requests_in_progress": self._http_in_progress,
        }


def _gauge(spec: MetricSpec, values: Mapping[tuple[str, ...], float | None]) -> Metric:
    """Return a gauge, of which a value that is not known yet has no sample."""
    family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
    for labels, value in values.items():
        if value is not None:
            family.add_metric(labels, value)
    return family


def _histogram(spec: MetricSpec, values: Mapping[tuple[str, ...], Histogram]) -> Metric:
    family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
    for labels, histogram in values.items():
        histogram.add_to(family, labels)
    return family


def _counter(spec: MetricSpec, values: dict[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(spec.name.removesuffix("_total"), spec.help, labels=spec.labels)
    for labels, value in values.items():
        if len(labels) == len(spec.labels):
            family.add_metric(labels, value)
    return family
