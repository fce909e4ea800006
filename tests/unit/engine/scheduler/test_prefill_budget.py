"""Prompts beside streams, on a virtual clock: how long the streams wait for their next token, and what it costs."""

import random
import statistics

import pytest

from orcinus.engine.scheduler.prefill_budget import PrefillBudget
from tests.unit.engine.scheduler.traffic import (
    Arrival,
    StepCost,
    Traffic,
    Unlimited,
    burst,
    cpu_step_s,
    gpu_step_s,
    skewed,
    streams_with_long_prompts,
)

STREAMS_END_S = 45.0


def noisy(step_cost: StepCost) -> StepCost:
    """Steps differ by a tenth, and something foreign holds up one in two hundred."""
    rng = random.Random(0)

    def step_s(num_decodes: int, num_prompt_tokens: int) -> float:
        slower = 5.0 if rng.random() < 0.005 else 1.0
        return step_cost(num_decodes, num_prompt_tokens) * rng.gauss(1.0, 0.08) * slower

    return step_s


def unlimited(traffic: Traffic) -> Traffic:
    traffic.core.scheduler._prefill_budget = Unlimited()
    return traffic


@pytest.mark.parametrize("step_cost", [cpu_step_s, gpu_step_s])
@pytest.mark.parametrize(("num_streams", "every_s"), [(16, 2.0), (16, 4.0), (16, 8.0), (4, 4.0), (1, 4.0)])
def test_a_long_prompt_does_not_stall_the_others(step_cost: StepCost, num_streams: int, every_s: float) -> None:
    arrivals = streams_with_long_prompts(num_streams, every_s, num_prompts=round(40 / every_s))
    outcome = Traffic(step_cost).run(arrivals, STREAMS_END_S)
    assert outcome.between_tokens(99) <= 2 * outcome.between_tokens(50)


@pytest.mark.parametrize("every_s", [2.0, 4.0, 8.0])
def test_nor_does_it_where_steps_vary_and_some_are_held_up(every_s: float) -> None:
    arrivals = streams_with_long_prompts(16, every_s, num_prompts=round(40 / every_s))
    outcome = Traffic(noisy(cpu_step_s)).run(arrivals, STREAMS_END_S)
    assert outcome.between_tokens(99) <= 2.3 * outcome.between_tokens(50)


@pytest.mark.parametrize(
    ("loads", "num_slots"), [([burst()], 32), ([skewed(seed=seed) for seed in range(8)], 16)], ids=["burst", "skewed"]
)
def test_prompts_that_arrive_at_once_are_served_nearly_as_fast_as_without_a_budget(
    loads: list[list[Arrival]], num_slots: int
) -> None:
    budgeted_s = sum(Traffic(max_num_seqs=num_slots).run(load).duration_s for load in loads)
    unlimited_s = sum(unlimited(Traffic(max_num_seqs=num_slots)).run(load).duration_s for load in loads)
    assert budgeted_s <= 1.02 * unlimited_s


def test_with_nothing_decoding_a_prompt_gets_the_whole_step_and_never_more() -> None:
    traffic = Traffic(max_num_batched_tokens=300)
    traffic.run([Arrival(0.0, 1_000, 4)])
    assert [plan.num_tokens for plan in traffic.executor.plans[:4]] == [300, 300, 300, 100]


@pytest.mark.parametrize("target_itl_ms", [None, 1_000.0])
def test_no_step_has_more_tokens_than_the_limit_whatever_the_budget_allows(target_itl_ms: float | None) -> None:
    traffic = Traffic(gpu_step_s, max_num_batched_tokens=64, target_itl_ms=target_itl_ms)
    traffic.run(streams_with_long_prompts(num_prompts=2))
    assert max(plan.num_tokens for plan in traffic.executor.plans) == 64


def test_the_first_chunk_beside_decodes_is_moderate() -> None:
    traffic = Traffic()
    traffic.run([Arrival(0.0, 4, 100), Arrival(1.0, 1_000, 4)])
    beside = [plan.num_tokens - 1 for plan in traffic.executor.plans if plan.num_tokens > 1 and len(plan.scheduled) > 1]
    assert 0 < beside[0] <= 32


@pytest.mark.parametrize("target_itl_ms", [45, 60, 100, 200])
@pytest.mark.parametrize("arrivals", [streams_with_long_prompts(every_s=4.0), burst(), skewed()])
def test_an_objective_is_held(target_itl_ms: float, arrivals: list[Arrival]) -> None:
    outcome = Traffic(target_itl_ms=target_itl_ms).run(arrivals, STREAMS_END_S)
    assert outcome.between_tokens(99) <= 1.05 * target_itl_ms / 1000
    assert len(outcome.first_token_s) > 16


def test_an_objective_leaves_prompts_the_time_that_decodes_do_not_need() -> None:
    arrivals = streams_with_long_prompts(every_s=4.0)
    generous = Traffic(target_itl_ms=400).run(arrivals, STREAMS_END_S)
    none = Traffic().run(arrivals, STREAMS_END_S)
    assert statistics.mean(generous.first_token_s.values()) < 0.7 * statistics.mean(none.first_token_s.values())


def test_an_objective_admits_no_more_than_keep_to_it() -> None:
    """24 decodes take 43 ms; part of the objective is kept for prompts."""
    arrivals = [Arrival(0.0, 32, 400) for _ in range(32)]
    assert 18 <= Traffic(target_itl_ms=45).run(arrivals).max_running <= 24
    assert Traffic(target_itl_ms=100).run(arrivals).max_running == 32


def test_where_an_objective_cannot_be_held_one_request_runs_after_the_other() -> None:
    outcome = Traffic(target_itl_ms=20).run(burst(8, 64))
    assert outcome.max_running == 1
    assert outcome.num_tokens == 8 * 64


def test_prompts_get_on_and_nobody_is_thrown_out_where_an_objective_is_not_held_any_more() -> None:
    """Steps become four times as slow while everybody is running. Half a minute later the streams end."""
    traffic = Traffic(lambda d, p: cpu_step_s(d, p) * (4 if traffic.clock.now > 6.0 else 1), target_itl_ms=60)
    outcome = traffic.run([Arrival(0.0, 32, 400) for _ in range(8)] + [Arrival(5.5, 1_000, 8) for _ in range(2)])
    assert outcome.num_tokens == 8 * 400 + 2 * 8
    assert outcome.num_preemptions == 0
    assert sorted(outcome.first_token_s.values())[8] < 14, "the prompt waits for the streams to end"


def test_a_long_prompt_gets_on_among_ever_more_prompts_of_a_single_token() -> None:
    single = [Arrival(5.0 + 0.02 * number, 1, 2) for number in range(500)]
    outcome = Traffic().run([Arrival(0.0, 8, 500) for _ in range(4)] + [Arrival(5.1, 1_000, 2)] + single)
    assert max(outcome.first_token_s.values()) < 4.0


@pytest.mark.parametrize("batching", ["continuous", "static", "interleaved", "sequential"])
@pytest.mark.parametrize("target_itl_ms", [None, 20, 100])
def test_every_strategy_serves_everybody(batching: str, target_itl_ms: float | None) -> None:
    arrivals = burst(12, 40)
    outcome = Traffic(target_itl_ms=target_itl_ms, batching=batching, max_num_seqs=4).run(arrivals)
    assert outcome.num_tokens == 12 * 40


def test_the_more_prompts_wait_beside_few_streams_the_more_time_they_get() -> None:
    budget = PrefillBudget()
    budget.observe(4, 0, 0.03)
    budget.observe(4, 200, 0.23)
    few, many = (budget.prompt_tokens(num_decodes=4, num_flowing=4, num_prompts=count) or 0 for count in (2, 12))
    assert few == pytest.approx(0.85 * 30, abs=1)
    assert many == pytest.approx(3 * few, abs=3)


def test_streams_that_have_just_begun_let_the_others_of_their_burst_catch_up() -> None:
    budget = PrefillBudget()
    budget.observe(4, 0, 0.03)
    assert budget.prompt_tokens(num_decodes=4, num_flowing=0, num_prompts=4) is None
    assert budget.prompt_tokens(num_decodes=4, num_flowing=1, num_prompts=4) == 16
