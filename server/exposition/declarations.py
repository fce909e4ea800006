"""Every metric that /metrics has by its own name, declared once: name, kind, meaning, labels, buckets.

The reference page is written from this, and so is what is exposed. Knows nothing of how things are counted.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from orcinus.engine.messages import AdmissionLimit
from orcinus.engine.outputs import Outcome

ENDS: tuple[Outcome, ...] = ("stop", "length", "abort", "timeout", "error")
REJECTED = "rejected"
OUTCOMES = (*ENDS, REJECTED)

RejectionReason = Literal["invalid", "too_long", "queue_full", "rate_limited", "draining", "unavailable", "error"]
REJECTION_REASONS: tuple[RejectionReason, ...] = get_args(RejectionReason)
ADMISSION_LIMITS: tuple[AdmissionLimit, ...] = get_args(AdmissionLimit)

# One millisecond to five minutes, and half a step beyond on both sides.
SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)  # fmt: skip
TOKENS = tuple(float(2**exponent) for exponent in range(15))  # of a step
REQUEST_TOKENS = tuple(float(2**exponent) for exponent in range(21))


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric: `name` is what a query says (counters with their `_total`)."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


# By engine, also where there is one alone; names of their own, so that no sum counts twice.
ENGINE_GAUGES = {
    "orcinus_engine_up": "1 while the engine is up, 0 while it loads, is replaced, or is lost for good.",
    "orcinus_engine_slots": "Sequences that can run in the engine at once.",
    "orcinus_engine_slots_in_use": "Sequences that run in the engine now.",
    "orcinus_engine_queue_depth": "Sequences that were sent to the engine and wait for a slot there.",
    "orcinus_engine_kv_blocks": "Blocks of the engine's KV cache.",
    "orcinus_engine_kv_blocks_in_use": "Those that running sequences hold.",
}
ENGINE_COUNTERS = {
    "orcinus_engine_sampled_tokens_total": "Tokens that the engine sampled.",
    "orcinus_engine_prefill_tokens_total": "Prompt tokens that the engine computed.",
    "orcinus_engine_prefix_cache_queries_total": "Prompt tokens looked up in the engine's prefix cache.",
    "orcinus_engine_prefix_cache_hits_total": "Prompt tokens found there.",
}

METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "orcinus_info",
        "gauge",
        "Always 1; its labels say what runs.",
        ("version", "model", "dtype", "device", "kv_cache_dtype"),
    ),
    MetricSpec(
        "orcinus_model_info",
        "gauge",
        "Always 1, once for each name that the model is served by; to be joined to other metrics by instance.",
        ("model_name",),
    ),
    MetricSpec("orcinus_slots", "gauge", "Sequences that can run at once (max_num_seqs)."),
    MetricSpec("orcinus_slots_in_use", "gauge", "Sequences that run now."),
    MetricSpec("orcinus_slot_utilization_ratio", "gauge", "Slots in use over slots, 0 to 1, at this moment."),
    MetricSpec(
        "orcinus_slot_seconds_total",
        "counter",
        "Seconds that slots were held, of all slots together. Its rate over that of orcinus_slot_capacity_seconds_total"
        " is the utilization over time, whatever happens between two scrapes.",
    ),
    MetricSpec(
        "orcinus_slot_capacity_seconds_total",
        "counter",
        "Seconds that there were slots, of all slots together; none while there is no engine.",
    ),
    MetricSpec("orcinus_queue_depth", "gauge", "Sequences that wait for a slot."),
    MetricSpec(
        "orcinus_admission_blocked_total",
        "counter",
        "Steps that left a sequence with nothing, by what it waits for: slots (all are held), blocks (of the KV cache),"
        " tokens (it has a slot, and max_num_batched_tokens are in the step), objective (the time that streams may wait"
        " for a token: target_itl_ms, or what holds without it), other (a step is tried again with fewer, or a static"
        " batch is being filled). A step counts once for each reason.",
        ("reason",),
    ),
    MetricSpec("orcinus_running_tokens", "gauge", "Tokens of the sequences that run, prompts and output together."),
    MetricSpec("orcinus_kv_blocks", "gauge", "Blocks of the KV cache; layers with a window have others."),
    MetricSpec("orcinus_kv_blocks_in_use", "gauge", "Those that running sequences hold (cached ones are free)."),
    MetricSpec("orcinus_kv_cache_utilization_ratio", "gauge", "Blocks in use over blocks, 0 to 1."),
    MetricSpec(
        "orcinus_state_snapshots",
        "gauge",
        "Snapshots of states that there is room for, of a model that keeps states beside keys and values.",
    ),
    MetricSpec("orcinus_state_snapshots_in_use", "gauge", "Those that prefixes can be reused with."),
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
        "orcinus_energy_joules_total",
        "counter",
        "Energy used while the server runs, where it can be read: gpu (NVML, the devices of the engines), cpu (RAPL,"
        " all packages of the machine, whoever used them).",
        ("source",),
    ),
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
    MetricSpec(
        "orcinus_request_prompt_tokens",
        "histogram",
        "Tokens of each prompt, cached ones included, when its request ends: once, however many samples are drawn.",
        bounds=REQUEST_TOKENS,
    ),
    MetricSpec(
        "orcinus_request_generation_tokens",
        "histogram",
        "Tokens that a sequence generated, when it ends; those that generated none are left out.",
        bounds=REQUEST_TOKENS,
    ),
    MetricSpec("orcinus_prefill_tokens_total", "counter", "Prompt tokens computed (cached ones are not)."),
    MetricSpec(
        "orcinus_forced_tokens_total",
        "counter",
        "Generated tokens that took no step of their own, because a grammar left no choice of them.",
    ),
    MetricSpec("orcinus_draft_tokens_proposed_total", "counter", "Drafts that were tried, by speculative decoding."),
    MetricSpec("orcinus_draft_tokens_accepted_total", "counter", "Drafts that became generated tokens."),
    MetricSpec(
        "orcinus_draft_tokens_proposed_by_position_total",
        "counter",
        "Drafts that were tried, by position behind a request's last token, 0 the first. Absent until some are tried.",
        ("position",),
    ),
    MetricSpec(
        "orcinus_draft_tokens_accepted_by_position_total",
        "counter",
        "Drafts that became generated tokens, by position. Absent until some are tried.",
        ("position",),
    ),
    MetricSpec("orcinus_preemptions_total", "counter", "Sequences that gave up their KV blocks and were put back."),
    MetricSpec("orcinus_prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache."),
    MetricSpec("orcinus_prefix_cache_hits_total", "counter", "Prompt tokens found there."),
    MetricSpec("orcinus_state_snapshot_loads_total", "counter", "Sequences that went on from a snapshot of a state."),
    MetricSpec("orcinus_state_snapshot_saves_total", "counter", "Snapshots that were made."),
    MetricSpec("orcinus_state_snapshot_evictions_total", "counter", "Snapshots that made room for others."),
    MetricSpec("orcinus_slots_refilled_total", "counter", "Slots given to a waiting sequence."),
    MetricSpec("orcinus_engine_restarts_total", "counter", "Times that an engine ended and was replaced."),
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
        "orcinus_prefill_time_seconds",
        "histogram",
        "From a slot to the first token, of sequences that ended by themselves; all of it where none is generated.",
        bounds=SECONDS,
    ),
    MetricSpec(
        "orcinus_decode_time_seconds",
        "histogram",
        "From the first token to the last, of sequences that ended by themselves.",
        bounds=SECONDS,
    ),
    MetricSpec(
        "orcinus_inference_time_seconds",
        "histogram",
        "From a slot to the last token: prefill and decode together.",
        bounds=SECONDS,
    ),
    MetricSpec(
        "orcinus_time_per_output_token_seconds",
        "histogram",
        "Mean time between the tokens of a sequence that ended by itself, of those with two or more.",
        bounds=SECONDS,
    ),
    MetricSpec(
        "orcinus_e2e_latency_seconds",
        "histogram",
        "From the head of a request to the end of a sequence, by how it ended.",
        ("outcome",),
        SECONDS,
    ),
    MetricSpec(
        "orcinus_key_requests_total",
        "counter",
        "Sequences of each named key, by how they ended; those that were never admitted are not among them.",
        ("key", "outcome"),
    ),
    MetricSpec(
        "orcinus_key_prompt_tokens_total", "counter", "Prompt tokens of ended requests of each named key.", ("key",)
    ),
    MetricSpec(
        "orcinus_key_generation_tokens_total",
        "counter",
        "Generated tokens of ended sequences of each named key.",
        ("key",),
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
    *(MetricSpec(name, "gauge", text, ("engine",)) for name, text in ENGINE_GAUGES.items()),
    *(MetricSpec(name, "counter", text, ("engine",)) for name, text in ENGINE_COUNTERS.items()),
)  # fmt: skip

SPECS = {spec.name: spec for spec in METRICS}
