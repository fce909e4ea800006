"""/metrics: what is counted, and that it equals what clients saw."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orcinus.engine.messages import StepStats
from orcinus.server.metrics import METRICS, OUTCOMES, SECONDS, Histogram, Metrics
from tests.unit.engine.fakes import FakeExecutor, fake_info, says
from tests.unit.server.serving import Gate, Serving, answer_of, error_of, generation_request, serving, until


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
        prefix_cache_queries=8,
        prefix_cache_hits=4,
        num_running=3,
        num_waiting=2,
        num_slots=4,
        num_kv_blocks=10,
        num_kv_blocks_used=7,
        num_slots_refilled=2,
        device_utilization=0.5,
        device_memory_used_bytes=100,
        device_memory_total_bytes=400,
    )
    metrics.on_step(busy)
    metrics.on_step(busy)
    values = samples(metrics)
    assert values["orcinus_slots_in_use"] == 3
    assert values["orcinus_slot_utilization_ratio"] == 0.75
    assert values["orcinus_queue_depth"] == 2
    assert values["orcinus_kv_blocks_in_use"] == 7
    assert values["orcinus_device_utilization_ratio"] == 0.5
    assert values["orcinus_device_memory_used_bytes"] == 100
    assert values["orcinus_preemptions_total"] == 2
    assert values["orcinus_prefix_cache_queries_total"] == 16
    assert values["orcinus_prefix_cache_hits_total"] == 8
    assert values["orcinus_slots_refilled_total"] == 4
    assert values["orcinus_prefill_tokens_total"] == 12
    assert values["orcinus_step_time_seconds_count"] == 2
    assert values["orcinus_tokens_per_step_sum"] == 16
    metrics.on_step(StepStats(num_slots=4, num_kv_blocks=10))
    values = samples(metrics)
    assert values["orcinus_slots_in_use"] == values["orcinus_queue_depth"] == 0
    assert values["orcinus_step_time_seconds_count"] == 2


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


def test_latency_buckets_fit_a_millisecond_and_five_minutes() -> None:
    assert {0.001, 300.0} <= set(SECONDS)
    assert min(SECONDS) < 0.001
    assert max(SECONDS) > 300
    assert list(SECONDS) == sorted(SECONDS)


@pytest.mark.parametrize(("value", "bucket"), [(0.5, 0), (1.0, 0), (1.5, 1), (2.0, 1), (3.0, 2)])
def test_histogram_counts_a_value_in_the_first_bucket_that_holds_it(value: float, bucket: int) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value, weight=3)
    spec = next(spec for spec in METRICS if spec.kind == "histogram")
    counts = [sample.value for sample in histogram.to_metric(spec).samples if sample.name.endswith("_bucket")]
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
        assert await served.metric("orcinus_e2e_latency_seconds_count") == 13
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
    assert await served.metric("orcinus_requests_total", outcome="rejected") == 1


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
