"""The same numbers by the names of vLLM, for endpoint pickers, autoscalers and dashboards that ask for those.

Nothing is counted here: each name is another view of a metric of ours, read when somebody scrapes. Labels and units
are vLLM's (docs/usage/metrics of vLLM; for `cache_config_info` and `lora_requests_info` the model server protocol of
the Gateway API Inference Extension); the buckets of histograms are ours. What vLLM counts and we do not is left out.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from orcinus.engine.messages import EngineInfo
from orcinus.server.exposition.declarations import SECONDS, SPECS
from orcinus.server.exposition.families import Labels, family, merged

_ENGINE = "0"  # as vLLM numbers its engines: the numbers are those of all engines together
_LABELS = ("model_name", "engine")

# A request that ran out of time was ended by the server for its client, which vLLM leaves to the client.
_FINISHED_REASONS = {"stop": "stop", "length": "length", "abort": "abort", "timeout": "abort", "error": "error"}


@dataclass(frozen=True, slots=True)
class Alias:
    """A name of vLLM's, and the metric of ours that it stands for; `labels` are those besides the model and engine."""

    name: str
    source: str
    labels: tuple[str, ...] = ()


ALIASES: tuple[Alias, ...] = (
    Alias("vllm:num_requests_running", "orcinus_slots_in_use"),
    Alias("vllm:num_requests_waiting", "orcinus_queue_depth"),
    Alias("vllm:kv_cache_usage_perc", "orcinus_kv_cache_utilization_ratio"),
    Alias("vllm:prompt_tokens_total", "orcinus_prompt_tokens_total"),
    Alias("vllm:prompt_tokens_cached_total", "orcinus_prefix_cache_hits_total"),
    Alias("vllm:generation_tokens_total", "orcinus_generation_tokens_total"),
    Alias("vllm:spec_decode_num_draft_tokens_total", "orcinus_draft_tokens_proposed_total"),
    Alias("vllm:spec_decode_num_accepted_tokens_total", "orcinus_draft_tokens_accepted_total"),
    Alias("vllm:spec_decode_num_drafts_total", "orcinus_draft_tokens_proposed_by_position_total"),
    Alias(
        "vllm:spec_decode_num_accepted_tokens_per_pos_total",
        "orcinus_draft_tokens_accepted_by_position_total",
        ("position",),
    ),
    Alias("vllm:request_success_total", "orcinus_requests_total", ("finished_reason",)),
    Alias("vllm:num_preemptions_total", "orcinus_preemptions_total"),
    Alias("vllm:prefix_cache_queries_total", "orcinus_prefix_cache_queries_total"),
    Alias("vllm:prefix_cache_hits_total", "orcinus_prefix_cache_hits_total"),
    Alias("vllm:iteration_tokens_total", "orcinus_tokens_per_step"),
    Alias("vllm:time_to_first_token_seconds", "orcinus_time_to_first_token_seconds"),
    Alias("vllm:inter_token_latency_seconds", "orcinus_inter_token_latency_seconds"),
    Alias("vllm:e2e_request_latency_seconds", "orcinus_e2e_latency_seconds"),
    Alias("vllm:request_queue_time_seconds", "orcinus_queue_time_seconds"),
    Alias("vllm:request_prefill_time_seconds", "orcinus_prefill_time_seconds"),
    Alias("vllm:request_decode_time_seconds", "orcinus_decode_time_seconds"),
    Alias("vllm:request_inference_time_seconds", "orcinus_inference_time_seconds"),
    Alias("vllm:request_time_per_output_token_seconds", "orcinus_time_per_output_token_seconds"),
    Alias("vllm:request_prompt_tokens", "orcinus_request_prompt_tokens"),
    Alias("vllm:request_generation_tokens", "orcinus_request_generation_tokens"),
    Alias("vllm:request_max_num_generation_tokens", "orcinus_request_generation_tokens"),  # a sequence is a request
)

# Facts, each in labels of a gauge; there is nothing of ours that is like them.
CACHE_CONFIG = "vllm:cache_config_info"
CACHE_CONFIG_LABELS = ("block_size", "cache_dtype", "num_gpu_blocks", "enable_prefix_caching", "engine")
LORA_REQUESTS = "vllm:lora_requests_info"
LORA_LABELS = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")

Values = Mapping[Labels, Any]


def vllm_families(read: Callable[[str], Values], info: EngineInfo | None, model_name: str) -> Iterator[Metric]:
    """Yield all metrics by vLLM's names; `read` gives the values of a metric of ours, by its labels."""
    for alias in ALIASES:
        yield _family(alias, _renamed(alias, read(alias.source), (model_name, _ENGINE)))
    if info is not None:
        yield _cache_config(info)
        if info.adapters:
            yield _lora_requests(info)


def _renamed(alias: Alias, values: Values, own: Labels) -> Values:
    """Return values by vLLM's labels. Those of several of ours that are one there are added up."""
    if alias.source == "orcinus_requests_total":
        counts = {(*own, reason): 0 for reason in dict.fromkeys(_FINISHED_REASONS.values())}
        for (outcome,), count in values.items():
            if outcome in _FINISHED_REASONS:  # what was never admitted did not finish
                counts[(*own, _FINISHED_REASONS[outcome])] += count
        return counts
    if alias.source == "orcinus_e2e_latency_seconds":
        return {own: merged(values.values(), SECONDS)}
    if alias.name == "vllm:spec_decode_num_drafts_total":  # proposals: each has a first draft
        return {own: values.get(("0",), 0)}
    if alias.labels == ("position",):
        return {(*own, position): count for (position,), count in values.items()}
    return dict.fromkeys([own], *values.values())


def _family(alias: Alias, values: Mapping[Labels, Any]) -> Metric:
    spec = SPECS[alias.source]
    renamed = replace(spec, name=alias.name, help=f"As {spec.name}: {spec.help}", labels=_LABELS + alias.labels)
    return family(renamed, values)


def _cache_config(info: EngineInfo) -> Metric:
    made = GaugeMetricFamily(CACHE_CONFIG, "Always 1; its labels say what the KV cache is.", labels=CACHE_CONFIG_LABELS)
    cache_dtype = info.kv_cache_dtype or info.dtype
    labels = (str(info.block_size), cache_dtype, str(info.num_kv_blocks), str(info.enable_prefix_caching), _ENGINE)
    made.add_metric(labels, 1.0)
    return made


def _lora_requests(info: EngineInfo) -> Metric:
    """Return which adapters are ready: all of them, as they are loaded at the start and none waits to be."""
    made = GaugeMetricFamily(
        LORA_REQUESTS, "The time now; its labels say which adapters are ready.", labels=LORA_LABELS
    )
    made.add_metric((str(len(info.adapters)), ",".join(info.adapters), ""), time.time())
    return made
