"""vLLM's names: the same numbers, in vLLM's labels and units, and none of them counted twice."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from orcinus.engine.messages import StepStats
from orcinus.server.exposition.declarations import SPECS
from orcinus.server.exposition.vllm_names import ALIASES
from orcinus.server.metrics import Metrics
from tests.unit.engine.fakes import FakeExecutor, fake_info, says
from tests.unit.server.serving import Serving, serving

# What a scraper of a vLLM server finds (docs/usage/metrics of vLLM, November 2026): name, kind, labels besides `le`.
REQUEST = {"model_name", "engine"}
VLLM = {
    "vllm:num_requests_running": ("gauge", REQUEST),
    "vllm:num_requests_waiting": ("gauge", REQUEST),
    "vllm:kv_cache_usage_perc": ("gauge", REQUEST),
    "vllm:prompt_tokens_total": ("counter", REQUEST),
    "vllm:prompt_tokens_cached_total": ("counter", REQUEST),
    "vllm:generation_tokens_total": ("counter", REQUEST),
    "vllm:spec_decode_num_draft_tokens_total": ("counter", REQUEST),
    "vllm:spec_decode_num_accepted_tokens_total": ("counter", REQUEST),
    "vllm:spec_decode_num_drafts_total": ("counter", REQUEST),
    "vllm:spec_decode_num_accepted_tokens_per_pos_total": ("counter", REQUEST | {"position"}),
    "vllm:request_success_total": ("counter", REQUEST | {"finished_reason"}),
    "vllm:num_preemptions_total": ("counter", REQUEST),
    "vllm:prefix_cache_queries_total": ("counter", REQUEST),
    "vllm:prefix_cache_hits_total": ("counter", REQUEST),
    "vllm:iteration_tokens_total": ("histogram", REQUEST),
    "vllm:time_to_first_token_seconds": ("histogram", REQUEST),
    "vllm:inter_token_latency_seconds": ("histogram", REQUEST),
    "vllm:e2e_request_latency_seconds": ("histogram", REQUEST),
    "vllm:request_queue_time_seconds": ("histogram", REQUEST),
    "vllm:request_prefill_time_seconds": ("histogram", REQUEST),
    "vllm:request_decode_time_seconds": ("histogram", REQUEST),
    "vllm:request_inference_time_seconds": ("histogram", REQUEST),
    "vllm:request_time_per_output_token_seconds": ("histogram", REQUEST),
    "vllm:request_prompt_tokens": ("histogram", REQUEST),
    "vllm:request_generation_tokens": ("histogram", REQUEST),
    "vllm:request_max_num_generation_tokens": ("histogram", REQUEST),
}


async def scraped(served: Serving) -> dict[str, list[Sample]]:
    """The samples of each metric, by its name in the text."""
    text = (await served.client.get("/metrics")).text
    families = text_string_to_metric_families(text)
    return {f"{family.name}_total" if family.type == "counter" else family.name: family.samples for family in families}


def of(samples: list[Sample], **labels: str) -> float:
    """The value of the only sample with these labels, among others."""
    [value] = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
    return value


async def test_names_are_vllms_with_its_kinds_and_labels(tmp_path: Path) -> None:
    async with serving(tmp_path, metrics_names="vllm", served_model_name=("first", "second")) as served:
        await served.complete("abc", max_tokens=3)
        text = (await served.client.get("/metrics")).text
        kinds = dict(re.findall(r"^# TYPE (vllm:\S+) (\w+)$", text, re.MULTILINE))
        assert {name: kind for name, (kind, _) in VLLM.items()} == {
            name: kind for name, kind in kinds.items() if not name.endswith("_info")
        }
        for name, samples in (await scraped(served)).items():
            if name in VLLM:
                assert all(set(sample.labels) - {"le"} == VLLM[name][1] for sample in samples), name
                assert all(sample.labels["model_name"] == "first" for sample in samples)
                assert all(sample.labels["engine"] == "0" for sample in samples)


async def test_own_names_are_left_out_where_only_vllms_are_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path, metrics_names="vllm") as served:
        assert "orcinus_" not in "".join(
            line for line in (await served.client.get("/metrics")).text.splitlines() if not line.startswith("# HELP")
        )
    async with serving(tmp_path) as served:
        assert "vllm:" not in (await served.client.get("/metrics")).text


async def test_both_names_have_the_same_numbers_of_all_that_was_asked(tmp_path: Path) -> None:
    executor = FakeExecutor(says("Hello there"))
    async with serving(tmp_path, executor, metrics_names=["orcinus,vllm"], info={"block_size": 4}) as served:
        usages = [(await served.complete("p" * length, max_tokens=length, n=2))["usage"] for length in range(1, 9)]
        await served.post("/v1/completions", prompt="x", temperature=9)  # is never admitted
        found = await scraped(served)
    assert of(found["vllm:prompt_tokens_total"]) == sum(usage["prompt_tokens"] for usage in usages)
    assert of(found["vllm:generation_tokens_total"]) == sum(usage["completion_tokens"] for usage in usages)
    assert of(found["vllm:request_success_total"], finished_reason="length") == 16
    assert sum(sample.value for sample in found["vllm:request_success_total"]) == 16
    assert of(found["vllm:prefix_cache_hits_total"]) > 0
    for alias in ALIASES:
        mine = [(sample.name, sample.labels.get("le"), sample.value) for sample in found[alias.source]]
        its = [(sample.name, sample.labels.get("le"), sample.value) for sample in found[alias.name]]
        if not SPECS[alias.source].labels:
            assert [(name.replace(alias.name, alias.source), *rest) for name, *rest in its] == mine, alias.name


def test_latency_of_all_ends_is_one_histogram() -> None:
    metrics = Metrics(["m"], names=["vllm"])
    metrics.on_choice_done("stop", 1.0, 1, 1)
    metrics.on_choice_done("abort", 3.0, 1, 1)
    text = metrics.exposition()[0].decode()
    assert 'vllm:e2e_request_latency_seconds_count{engine="0",model_name="m"} 2.0' in text
    assert 'vllm:e2e_request_latency_seconds_sum{engine="0",model_name="m"} 4.0' in text


@pytest.mark.parametrize(("outcome", "reason"), [("stop", "stop"), ("timeout", "abort"), ("error", "error")])
def test_ends_are_told_by_vllms_reasons(outcome: str, reason: str) -> None:
    metrics = Metrics(["m"], names=["vllm"])
    metrics.on_choice_done(outcome, 1.0, 1, 1)  # type: ignore[arg-type]
    text = metrics.exposition()[0].decode()
    assert f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="m"}} 1.0' in text


def test_the_cache_is_told_as_an_endpoint_picker_reads_it() -> None:
    metrics = Metrics(["m"], names=["vllm"])
    assert "cache_config_info" not in metrics.exposition()[0].decode(), "it is not known before the model is loaded"
    metrics.on_ready(fake_info(block_size=32, num_kv_blocks=77, kv_cache_dtype="int8"), "m")
    [line] = [line for line in metrics.exposition()[0].decode().splitlines() if line.startswith("vllm:cache_config")]
    assert 'block_size="32"' in line
    assert 'cache_dtype="int8"' in line
    assert 'num_gpu_blocks="77"' in line
    assert line.endswith(" 1.0")


def test_adapters_are_told_where_there_are_some() -> None:
    metrics = Metrics(["m"], names=["vllm"])
    metrics.on_ready(fake_info(), "m")
    assert "vllm:lora_requests_info" not in metrics.exposition()[0].decode()
    metrics.on_ready(fake_info(adapters=["one", "two"]), "m")
    [line] = [line for line in metrics.exposition()[0].decode().splitlines() if line.startswith("vllm:lora_requests")]
    labels = 'max_lora="2",running_lora_adapters="one,two",waiting_lora_adapters=""'
    assert line.startswith(f"vllm:lora_requests_info{{{labels}}} ")
    assert float(line.rpartition(" ")[2]) > 1.7e9


# As Prometheus 2 and 3 ask.
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    "accept",
    [PROMETHEUS_2, PROMETHEUS_3, "text/plain; version=1.0.0; escaping=underscores", "text/plain; version=0.0.4", "*/*"],
)
async def test_names_keep_their_colon_in_every_format(tmp_path: Path, accept: str) -> None:
    async with serving(tmp_path, metrics_names="orcinus,vllm") as served:
        text = (await served.client.get("/metrics", headers={"accept": accept})).text
    lines = text.splitlines()
    assert 'vllm:generation_tokens_total{engine="0",model_name="fake-model"} 0.0' in lines
    assert 'vllm:iteration_tokens_total_count{engine="0",model_name="fake-model"} 0.0' in lines
    assert "vllm_" not in text
    assert text.endswith("# EOF\n") == ("openmetrics" in accept)


def test_drafts_are_counted_as_vllm_counts_them() -> None:
    metrics = Metrics(model_names=["m"], names=["vllm"])
    assert "spec_decode_num_drafts_total{" in metrics.exposition(None)[0].decode()
    metrics.on_step(StepStats(num_decode_tokens=9, tried_drafts=[3, 2, 2], accepted_drafts=[2, 1, 0]))
    text = metrics.exposition(None)[0].decode()
    counted = dict(re.findall(r"^vllm:spec_decode_num_(\S+) (\S+)$", text, re.MULTILINE))
    own = 'engine="0",model_name="m"'
    assert counted[f"drafts_total{{{own}}}"] == "3.0"
    assert counted[f"draft_tokens_total{{{own}}}"] == "7.0"
    assert counted[f"accepted_tokens_total{{{own}}}"] == "3.0"
    of_positions = [counted[f'accepted_tokens_per_pos_total{{{own},position="{position}"}}'] for position in range(3)]
    assert of_positions == ["2.0", "1.0", "0.0"]
