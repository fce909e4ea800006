"""/metrics: what is counted, and that it equals what clients saw."""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from orcinus.config.api_keys import MAX_NAMED_KEYS, key_name
from orcinus.engine.messages import StepStats
from orcinus.engine.outputs import GenerationRequest, RequestTiming
from orcinus.engine.sampling_params import SamplingParams
from orcinus.server.metrics import METRICS, OUTCOMES, REJECTION_REASONS, SECONDS, Histogram, Metrics
from tests.unit.engine.fakes import FakeExecutor, fake_info, says
from tests.unit.server.serving import Gate, Serving, answer_of, error_of, generation_request, serving, until


@contextlib.asynccontextmanager
async def held(directory: Path, **options: Any) -> AsyncIterator[Serving]:
    """An app whose model does nothing until the end, however the test ends."""
    gate = Gate()
    async with serving(directory, FakeExecutor(before_step=gate), **options) as running:
        try:
            yield running
        finally:
            gate.open()


def samples(metrics: Metrics) -> dict[str, float]:
    text, _ = metrics.exposition()
    return {
        sample.name + "".join(f",{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_every_declared_metric_is_exposed_with_its_help() -> None:
    metrics = Metrics()
    text = metrics.exposition()[0].decode()
    for spec in METRICS:
        assert f"# TYPE {spec.name} {spec.kind}" in text
        assert f"# HELP {spec.name} " in text
        assert spec.name.startswith("orcinus_")
        assert spec.name.endswith("_total") == (spec.kind == "counter")


def test_two_servers_do_not_share_their_numbers() -> None:
    first, second = Metrics(), Metrics()
    first.on_choice_done("stop", 1.0, 2, 3)
    assert samples(first)["orcinus_requests_total,stop"] == 1
    assert samples(second)["orcinus_requests_total,stop"] == 0


def test_gauges_are_those_of_the_last_step_and_counters_of_all() -> None:
    metrics = Metrics()
    busy = StepStats(
        step_time_s=0.01,
        num_prefill_tokens=6,
        num_decode_tokens=2,
        num_preemptions=1,
        num_forced_tokens=3,
        tried_drafts=[4, 3],
        accepted_drafts=[3, 2],
        prefix_cache_queries=8,
        prefix_cache_hits=4,
        num_running=3,
        num_waiting=2,
        num_slots=4,
        num_kv_blocks=10,
        num_kv_blocks_used=7,
        num_slots_refilled=2,
        num_snapshots=8,
        num_snapshots_used=5,
        num_snapshot_loads=1,
        num_snapshot_saves=4,
        num_snapshot_evictions=2,
        device_utilization=0.5,
        device_memory_used_bytes=100,
        device_memory_total_bytes=400,
    )
    metrics.on_step(busy)
    metrics.on_step(busy)
    values = samples(metrics)
    assert values["orcinus_forced_tokens_total"] == 6
    assert values["orcinus_draft_tokens_proposed_total"] == 14
    assert values["orcinus_draft_tokens_accepted_total"] == 10
    by_position = {
        name: [values[f"orcinus_draft_tokens_{name}_by_position_total,{position}"] for position in (0, 1)]
        for name in ("proposed", "accepted")
    }
    assert by_position == {"proposed": [8, 6], "accepted": [6, 4]}
    assert values["orcinus_slots_in_use"] == 3
    assert values["orcinus_slot_utilization_ratio"] == 0.75
    assert values["orcinus_queue_depth"] == 2
    assert values["orcinus_kv_blocks_in_use"] == 7
    assert values["orcinus_kv_cache_utilization_ratio"] == 0.7
    assert values["orcinus_device_utilization_ratio"] == 0.5
    assert values["orcinus_device_memory_used_bytes"] == 100
    assert values["orcinus_preemptions_total"] == 2
    assert values["orcinus_prefix_cache_queries_total"] == 16
    assert values["orcinus_prefix_cache_hits_total"] == 8
    assert values["orcinus_slots_refilled_total"] == 4
    assert values["orcinus_prefill_tokens_total"] == 12
    assert (values["orcinus_state_snapshots"], values["orcinus_state_snapshots_in_use"]) == (8, 5)
    made = {name: values[f"orcinus_state_snapshot_{name}_total"] for name in ("loads", "saves", "evictions")}
    assert made == {"loads": 2, "saves": 8, "evictions": 4}
    assert values["orcinus_step_time_seconds_count"] == 2
    assert values["orcinus_tokens_per_step_sum"] == 16
    metrics.on_step(StepStats(num_slots=4, num_kv_blocks=10))
    values = samples(metrics)
    assert values["orcinus_slots_in_use"] == values["orcinus_queue_depth"] == 0
    assert values["orcinus_step_time_seconds_count"] == 2


def test_time_of_slots_and_limits_of_admission_are_counted() -> None:
    metrics = Metrics()
    metrics.on_step(StepStats(num_decode_tokens=1, slot_s=0.5, slot_capacity_s=2.0, blocked_by=["slots", "tokens"]))
    metrics.on_step(StepStats(num_decode_tokens=1, slot_s=0.25, slot_capacity_s=1.0, blocked_by=["slots"]))
    metrics.on_step(StepStats(slot_capacity_s=4.0))  # a heartbeat
    values = samples(metrics)
    assert values["orcinus_slot_seconds_total"] == 0.75
    assert values["orcinus_slot_capacity_seconds_total"] == 7.0
    limits = {name.partition(",")[2]: value for name, value in values.items() if "admission_blocked" in name}
    assert limits == {"slots": 2, "blocks": 0, "tokens": 1, "objective": 0, "other": 0}


def test_energy_has_samples_of_what_is_measured() -> None:
    assert not [name for name in samples(Metrics()) if "energy" in name]
    metrics = Metrics(cpu_energy_j=lambda: 12.5)
    metrics.on_step(StepStats(gpu_energy_j=0.0))
    metrics.on_step(StepStats(gpu_energy_j=3.0))
    metrics.on_step(StepStats(gpu_energy_j=4.5))
    energy = {name: value for name, value in samples(metrics).items() if "energy" in name}
    assert energy == {"orcinus_energy_joules_total,cpu": 12.5, "orcinus_energy_joules_total,gpu": 7.5}


def test_times_of_a_sequence_that_ended_by_itself_are_told_apart() -> None:
    metrics = Metrics()
    timing = RequestTiming(queue_time_s=9.0, prefill_time_s=0.5, decode_time_s=2.0, num_preemptions=0)
    metrics.on_choice_complete(timing, 5)
    metrics.on_choice_complete(timing, 1)
    values = samples(metrics)
    assert values["orcinus_prefill_time_seconds_sum"] == 1.0
    assert values["orcinus_decode_time_seconds_sum"] == 4.0
    assert values["orcinus_inference_time_seconds_sum"] == 5.0
    assert values["orcinus_time_per_output_token_seconds_count"] == 1
    assert values["orcinus_time_per_output_token_seconds_sum"] == 0.5


async def test_what_named_keys_use_is_counted_by_their_names(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello")), api_key=["one", "two"]) as served:
        clients = {key: served.app.state.keys.check(f"Bearer {key}".encode()).client for key in ("one", "two")}
        served.app.state.metrics.name_keys({clients["one"]: "batch"}.get)
        usages = []
        for key, n in (("one", 1), ("one", 3), ("two", 1)):
            headers = {"authorization": f"Bearer {key}"}
            body = {"prompt": "abcd", "n": n, "max_tokens": 3}
            usages.append(answer_of(await served.client.post("/v1/completions", json=body, headers=headers))["usage"])
        text = (await served.client.get("/metrics")).text
        expected = sum(usage["completion_tokens"] for usage in usages[:2])
        assert await served.metric("orcinus_key_requests_total", key="batch", outcome="length") == 4
        assert await served.metric("orcinus_key_prompt_tokens_total", key="batch") == 8
        assert await served.metric("orcinus_key_generation_tokens_total", key="batch") == expected
    assert not [line for line in text.splitlines() if line.startswith("orcinus_key") and 'key="batch"' not in line]
    assert not [client for client in clients.values() if client in text]


async def test_tokens_of_requests_add_up_to_those_of_all(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello there"))) as served:
        for length in range(1, 8):
            await served.complete("p" * length, max_tokens=length, n=2)
        answer_of(await served.post("/v1/embeddings", input=["ab", "cd"]))
        for kind in ("prompt", "generation"):
            total = await served.metric(f"orcinus_{kind}_tokens_total")
            assert await served.metric(f"orcinus_request_{kind}_tokens_sum") == total > 0
        assert await served.metric("orcinus_request_prompt_tokens_count") == 7 + 2, "a prompt, however many samples"
        assert await served.metric("orcinus_request_generation_tokens_count") == 14
        assert await served.metric("orcinus_decode_time_seconds_count") == 16


async def test_slots_are_held_for_as_long_as_there_are_requests(tmp_path: Path) -> None:
    async with serving(tmp_path, info={"max_num_seqs": 2}) as served:
        for _ in range(3):
            await served.complete("abc", max_tokens=5, n=4)
        held = await served.metric("orcinus_slot_seconds_total")
        assert 0 < held <= await served.metric("orcinus_slot_capacity_seconds_total")
        assert await served.metric("orcinus_admission_blocked_total", reason="slots") > 0


def test_gauges_that_are_not_known_have_no_sample() -> None:
    values = samples(Metrics())
    assert "orcinus_device_utilization_ratio" not in values
    assert "orcinus_info" not in values


def test_sizes_are_known_before_the_first_step() -> None:
    metrics = Metrics()
    metrics.on_ready(fake_info(), "my-model")
    values = samples(metrics)
    assert (values["orcinus_slots"], values["orcinus_kv_blocks"]) == (4, 128)
    [info] = [name for name in values if name.startswith("orcinus_info")]
    assert {"my-model", "float32", "cpu"} <= set(info.split(","))
    metrics.on_ready(fake_info(kv_cache_dtype="int8"), "my-model")
    [info] = [name for name in samples(metrics) if name.startswith("orcinus_info")]
    assert {"float32", "int8"} <= set(info.split(","))


def test_latency_buckets_fit_a_millisecond_and_five_minutes() -> None:
    assert {0.001, 300.0} <= set(SECONDS)
    assert min(SECONDS) < 0.001
    assert max(SECONDS) > 300
    assert list(SECONDS) == sorted(SECONDS)


@pytest.mark.parametrize(("value", "bucket"), [(0.5, 0), (1.0, 0), (1.5, 1), (2.0, 1), (3.0, 2)])
def test_histogram_counts_a_value_in_the_first_bucket_that_holds_it(value: float, bucket: int) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value, weight=3)
    family = HistogramMetricFamily("x", "Help.")
    histogram.add_to(family)
    counts = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
    assert counts == [0.0] * bucket + [3.0] * (3 - bucket)


async def test_counters_equal_the_usage_that_clients_saw(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello there"))) as served:
        answers = [await served.complete("p" * length, max_tokens=length) for length in range(1, 8)]
        answers.append(await served.complete(["abc", "de"], n=3, stop="lo"))
        usages = [answer["usage"] for answer in answers]
        total = sum(usage["completion_tokens"] for usage in usages)
        assert await served.metric("orcinus_generation_tokens_total") == total
        assert await served.metric("orcinus_prompt_tokens_total") == sum(usage["prompt_tokens"] for usage in usages)
        assert await served.metric("orcinus_requests_total", outcome="length") == 7
        assert await served.metric("orcinus_requests_total", outcome="stop") == 6
        assert await served.metric("orcinus_e2e_latency_seconds_count", outcome="length") == 7
        assert await served.metric("orcinus_e2e_latency_seconds_count", outcome="stop") == 6
        assert await served.metric("orcinus_time_to_first_token_seconds_count") == 13
        assert await served.metric("orcinus_queue_time_seconds_count") == 13
        assert await served.metric("orcinus_inter_token_latency_seconds_count") == total - 13


async def test_who_generates_nothing_has_waited_for_a_slot_too(served: Serving) -> None:
    answer_of(await served.post("/v1/embeddings", input=["ab", "cd"]))
    await served.complete("abc", max_tokens=0)
    assert await served.metric("orcinus_queue_time_seconds_count") == 3
    assert await served.metric("orcinus_time_to_first_token_seconds_count") == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
async def test_a_prompt_that_is_too_long_is_rejected_whatever_it_comes_in(served: Serving, path: str) -> None:
    text = "a" * (served.engine.info.max_model_len + 1)
    fields = {"messages": [{"role": "user", "content": text}], "prompt": [text, text], "input": text}
    wanted = {"/v1/completions": "prompt", "/v1/chat/completions": "messages", "/v1/embeddings": "input"}[path]
    error_of(await served.post(path, **{wanted: fields[wanted]}), 400)
    num_prompts = 2 if wanted == "prompt" else 1
    assert await served.metric("orcinus_requests_total", outcome="rejected") == num_prompts
    assert await served.metric("orcinus_requests_rejected_total", reason="too_long") == num_prompts


@pytest.mark.parametrize(
    ("path", "body", "reason", "number"),
    [
        ("/v1/completions", {"prompt": "a" * 300, "n": 3}, "too_long", 3),
        ("/v1/completions", {"prompt": ["a" * 300, "b"], "n": 3}, "too_long", 6),
        ("/v1/completions", {"prompt": [[97] * 300, [98]], "best_of": 4}, "too_long", 8),
        ("/v1/completions", {"prompt": "a" * 1_000_000, "n": 2}, "too_long", 2),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 300}], "n": 5}, "too_long", 5),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 1_000_000}], "n": 5}, "too_long", 5),
        ("/v1/responses", {"input": "a" * 300}, "too_long", 1),
        ("/v1/responses", {"input": [{"role": "user", "content": "a" * 300}] * 3}, "too_long", 1),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a" * 300}], "max_tokens": 1}, "too_long", 1),
        ("/v1/embeddings", {"input": ["a", "a" * 300]}, "too_long", 2),
        ("/v1/completions", {"prompt": "a", "n": 2, "temperature": 9}, "invalid", 2),
        ("/v1/completions", {"prompt": "a", "n": 2, "model": "other"}, "invalid", 2),
        ("/v1/completions", {"prompt": "a", "n": 2, "logit_bias": {"999999": 1}}, "invalid", 2),
        ("/v1/completions", {"prompt": "a", "n": 10**9}, "invalid", 1),
        ("/v1/completions", {"prompt": ["a"] * 1000, "n": 2}, "invalid", 2),
        ("/v1/completions", {"prompt": "a", "n": "3"}, "invalid", 1),
        ("/v1/completions", {"n": True}, "invalid", 1),
        ("/v1/chat/completions", {"messages": [], "n": 4}, "invalid", 4),
        ("/v1/completions", {"prompt": "a", "n": 100}, "invalid", 100),
    ],
)
async def test_a_refused_request_counts_prompts_times_n_once_by_its_reason(
    tmp_path: Path, path: str, body: dict[str, Any], reason: str, number: int
) -> None:
    async with serving(tmp_path, max_queue_len=8) as served:
        assert (await served.post(path, **body)).status_code in (400, 404)
        found = {
            each: await served.metric("orcinus_requests_rejected_total", reason=each) for each in REJECTION_REASONS
        }
        assert {each: count for each, count in found.items() if count} == {reason: number}
        assert await served.metric("orcinus_requests_total", outcome="rejected") == number


async def test_requests_that_find_no_room_no_engine_or_an_end_are_told_apart(tmp_path: Path) -> None:
    async with serving(tmp_path, is_ready=False) as served:
        error_of(await served.post("/v1/completions", prompt="a", n=2), 503)
        assert await served.metric("orcinus_requests_rejected_total", reason="unavailable") == 2
    async with held(tmp_path, info={"max_num_seqs": 1}, max_queue_len=3, max_requests_per_key=4) as served:
        stream = served.engine.submit(generation_request("r", 2))
        error_of(await served.post("/v1/completions", prompt="a", n=3), 429)
        assert await served.metric("orcinus_requests_rejected_total", reason="queue_full") == 3
        more = served.engine.submit(generation_request("s", 2))
        error_of(await served.post("/v1/completions", prompt="a", n=2), 429)
        assert await served.metric("orcinus_requests_rejected_total", reason="queue_full") == 4, "its body was not read"
        served.app.state.context.intake.close()
        error_of(await served.post("/v1/completions", prompt=["a", "b"], n=2), 503)
        assert await served.metric("orcinus_requests_rejected_total", reason="draining") == 1, "its body was not read"
        stream.abort()
        more.abort()


async def test_a_keys_limit_is_told_from_the_queues(tmp_path: Path) -> None:
    async with held(tmp_path, max_requests_per_key=2) as served:
        stream = served.engine.submit(generation_request("r", 1))
        error_of(await served.post("/v1/completions", prompt="a", n=2), 429)
        assert await served.metric("orcinus_requests_rejected_total", reason="rate_limited") == 2
        stream.abort()


async def test_latencies_count_from_when_a_request_was_asked(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello"))) as served:
        asked_at = time.monotonic() - 50.0
        sampling = SamplingParams(max_tokens=2)
        asked = GenerationRequest(request_id="r", prompts=[[97]], sampling=sampling, asked_at=asked_at)
        async for _ in served.engine.submit(asked):
            pass
        assert await served.metric("orcinus_time_to_first_token_seconds_sum") > 49
        assert await served.metric("orcinus_e2e_latency_seconds_sum", outcome="length") > 49
        assert await served.metric("orcinus_queue_time_seconds_sum") < 49
        await served.complete()
        assert await served.metric("orcinus_e2e_latency_seconds_sum", outcome="stop") < 49, "of HTTP, from its head on"


@pytest.mark.parametrize("outcome", ["abort", "timeout"])
async def test_what_did_not_end_by_itself_has_a_latency_of_its_own(tmp_path: Path, outcome: str) -> None:
    async with held(tmp_path) as served:
        if outcome == "abort":
            served.engine.submit(generation_request("r", 3)).abort()
        else:
            error_of(await served.post("/v1/completions", prompt="a", n=3, timeout=0.01), 408)
        assert await served.metric("orcinus_e2e_latency_seconds_count", outcome=outcome) == 3
        assert await served.metric("orcinus_e2e_latency_seconds_count", outcome="stop") == 0


async def test_http_durations_are_told_by_route(served: Serving) -> None:
    before = await served.metric("orcinus_http_request_duration_seconds_count", route="/v1/completions")
    await served.complete()
    await served.post("/v1/completions", prompt="a", stream=True)
    await served.post("/v1/completions", wrong=1)
    await served.client.get("/nowhere")
    name = "orcinus_http_request_duration_seconds_count"
    assert before == 0
    assert await served.metric(name, route="/v1/completions") == 3
    assert await served.metric(name, route="other") == 1
    assert await served.metric(name, route="/v1/chat/completions") == 0


async def test_series_are_there_before_the_first_request(served: Serving) -> None:
    text = (await served.client.get("/metrics")).text
    wanted = [
        'orcinus_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 0.0',
        'orcinus_http_requests_total{method="GET",route="/v1/models",status="200"} 0.0',
        'orcinus_http_request_duration_seconds_count{route="/v1/embeddings"} 0.0',
        'orcinus_e2e_latency_seconds_count{outcome="stop"} 0.0',
        'orcinus_requests_rejected_total{reason="queue_full"} 0.0',
        "orcinus_event_loop_lag_seconds_count 0.0",
        "orcinus_preemptions_total 0.0",
    ]
    assert [line for line in wanted if line not in text.splitlines()] == []


async def test_every_name_that_is_served_has_a_series(tmp_path: Path) -> None:
    async with serving(tmp_path, served_model_name=("first", "second")) as served:
        for name in ("first", "second"):
            assert await served.metric("orcinus_model_info", model_name=name) == 1
        assert await served.metric("orcinus_model_info", model_name="third") == 0


async def test_every_outcome_is_there_from_the_start(served: Serving) -> None:
    text = (await served.client.get("/metrics")).text
    assert all(f'orcinus_requests_total{{outcome="{outcome}"}} 0.0' in text for outcome in OUTCOMES)


async def test_gauges_fall_back_to_zero_when_work_is_done(tmp_path: Path) -> None:
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate), info={"max_num_seqs": 2}) as served:
        stream = served.engine.submit(generation_request("r", 5))
        gate.let(2)
        await until(lambda: served.engine.stats.num_waiting == 3)
        assert await served.metric("orcinus_slot_utilization_ratio") == 1.0
        assert await served.metric("orcinus_queue_depth") == 3
        gate.open()
        async for _ in stream:
            pass
        await until(lambda: served.engine.stats.num_running == 0)
        assert await served.metric("orcinus_slots_in_use") == 0
        assert await served.metric("orcinus_queue_depth") == 0
        assert await served.metric("orcinus_slots") == 2


async def test_http_requests_have_no_label_from_user_input(served: Serving) -> None:
    for path in ("/v1/models/a", "/v1/models/b/c", "/zzz", "/yyy"):
        await served.client.get(path)
    await served.client.request("BREW", "/live")
    await served.post("/v1/completions", prompt="x", model="evil")
    text = (await served.client.get("/metrics")).text
    for name in ("zzz", "yyy", "evil", "BREW", "b/c"):
        assert name not in text
    labels = {"method": "GET", "route": "/v1/models/{model}", "status": "404"}
    lines = [line for line in text.splitlines() if line.startswith("orcinus_http_requests_total{")]
    assert any(
        all(f'{key}="{value}"' in line for key, value in labels.items()) and line.endswith(" 2.0") for line in lines
    )
    assert any('route="other"' in line and line.endswith(" 2.0") for line in lines)


async def test_format_follows_what_the_scraper_accepts(served: Serving) -> None:
    plain = await served.client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    fancy = await served.client.get("/metrics", headers=accept)
    assert fancy.headers["content-type"].startswith("application/openmetrics-text")
    assert fancy.text.endswith("# EOF\n")


def test_there_are_so_many_names_of_keys_in_the_metrics_however_often_the_file_changes() -> None:
    metrics = Metrics()
    metrics.name_keys(key_name)
    for number in [*range(MAX_NAMED_KEYS + 5), 0]:
        metrics.on_client_usage(f"name:n{number}", "stop", 2, 1)
    metrics.on_client_usage("0123456789abcdef", "stop", 2, 1)
    text = metrics.exposition()[0].decode()
    samples = [line for line in text.splitlines() if line.startswith("orcinus_key_prompt_tokens_total{")]
    assert len(samples) == MAX_NAMED_KEYS + 1
    assert 'orcinus_key_prompt_tokens_total{key="(others)"} 10.0' in samples
    assert 'orcinus_key_prompt_tokens_total{key="n0"} 4.0' in samples
