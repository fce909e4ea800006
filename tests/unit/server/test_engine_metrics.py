"""What /metrics says of each engine."""

from prometheus_client.parser import text_string_to_metric_families

from orcinus.engine.messages import StepStats
from orcinus.server.metrics import Metrics

STEP = StepStats(
    step_time_s=0.1,
    num_prefill_tokens=7,
    num_decode_tokens=3,
    num_sampled_tokens=4,
    prefix_cache_queries=9,
    prefix_cache_hits=2,
    num_running=3,
    num_waiting=1,
    num_slots=8,
    num_kv_blocks=100,
    num_kv_blocks_used=30,
)


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Every sample with the label `engine`, by name and number."""
    text = metrics.exposition()[0].decode()
    return {
        (sample.name.removeprefix("orcinus_engine_"), sample.labels["engine"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "engine" in sample.labels
    }


def test_gauges_are_those_of_an_engines_last_step_and_counters_of_all_its_steps() -> None:
    metrics = Metrics()
    metrics.on_engine(0, is_up=True, stats=STEP)
    metrics.on_engine(1, is_up=True, stats=STEP)
    metrics.on_engine(1, is_up=True, stats=STEP)
    found = samples(metrics)
    gauges = {"up": 1, "slots": 8, "slots_in_use": 3, "queue_depth": 1, "kv_blocks": 100, "kv_blocks_in_use": 30}
    counters = {
        "sampled_tokens_total": 4,
        "prefill_tokens_total": 7,
        "prefix_cache_queries_total": 9,
        "prefix_cache_hits_total": 2,
    }
    assert found == {
        **{(name, engine): value for name, value in gauges.items() for engine in "01"},
        **{(name, "0"): value for name, value in counters.items()},
        **{(name, "1"): 2 * value for name, value in counters.items()},
    }


def test_an_engine_that_ended_keeps_what_it_counted() -> None:
    metrics = Metrics()
    metrics.on_engine(0, is_up=True, stats=STEP)
    metrics.on_engine(0, is_up=False, stats=StepStats(num_slots=8, num_waiting=4))
    found = samples(metrics)
    assert (found["up", "0"], found["queue_depth", "0"], found["slots_in_use", "0"]) == (0, 4, 0)
    assert found["sampled_tokens_total", "0"] == 4


def test_numbers_of_engines_are_not_counted_among_those_of_the_server() -> None:
    metrics = Metrics()
    before = metrics.exposition()[0]
    assert b"orcinus_slots 0.0" in before
    metrics.on_engine(0, is_up=True, stats=STEP)
    assert b"orcinus_slots 0.0" in metrics.exposition()[0]
