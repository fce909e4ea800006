"""Prompts beside streams, on a virtual clock: how long the streams wait for their next token, and what it costs."""

import random
import statistics
from collections.abc import Sequence

import pytest

from bench.simulation.traffic import Unlimited
from orcinus.engine.scheduler.prefill_budget import PendingPrompt, PrefillBudget
from tests.unit.engine.scheduler.traffic import (
    Arrival,
    StepCost,
    Traffic,
    burst,
    cpu_step_s,
    gpu_step_s,
    skewed,
    streams_with_long_prompts,
)

STREAMS_END_S = 45.0
LONGEST_STEP_S = 0.24


def noisy(step_cost: StepCost) -> StepCost:
    """Steps differ by a tenth, and something foreign holds up one in two hundred."""
    rng = random.Random(0)

    def step_s(num_decodes: int, num_prompt_tokens: int) -> float:
        slower = 5.0 if rng.random() < 0.005 else 1.0
        return step_cost(num_decodes, num_prompt_tokens) * rng.gauss(1.0, 0.08) * slower

    return step_s


def graph_step_s(num_decodes: int, num_prompt_tokens: int) -> float:
    """As on a GPU that replays steps of decodes alone as a graph: 25 ms, and little more, with any prompt in it."""
    return 0.005 if num_prompt_tokens == 0 else 0.025 + 0.00002 * num_prompt_tokens


def waiting(num_tokens: int, waited_s: float = 0.0, count: int = 1) -> list[PendingPrompt]:
    return [PendingPrompt(num_tokens, waited_s)] * count


def taught(
    step_cost: StepCost, num_decodes: int, chunks: Sequence[int], target_itl_s: float | None = None
) -> PrefillBudget:
    """A budget that has seen steps of decodes alone and with chunks."""
    budget = PrefillBudget(target_itl_s, target_ttft_s=1.0)
    for num_tokens in (0, 0, *chunks):
        budget.observe(num_decodes, num_tokens, step_cost(num_decodes, num_tokens))
    return budget


def unlimited(traffic: Traffic) -> Traffic:
    traffic.core.scheduler._prefill_budget = Unlimited()
    return traffic


@pytest.mark.parametrize("step_cost", [cpu_step_s, gpu_step_s])
@pytest.mark.parametrize(("num_streams", "every_s"), [(16, 2.0), (16, 4.0), (16, 8.0), (4, 4.0), (1, 4.0)])
def test_a_long_prompt_does_not_stall_the_others(step_cost: StepCost, num_streams: int, every_s: float) -> None:
    arrivals = streams_with_long_prompts(num_streams, every_s, num_prompts=round(40 / every_s))
    outcome = Traffic(step_cost).run(arrivals, STREAMS_END_S)
    assert outcome.between_tokens(99) <= max(LONGEST_STEP_S, 2 * outcome.between_tokens(50))


@pytest.mark.parametrize("every_s", [2.0, 4.0, 8.0])
def test_nor_does_it_where_steps_vary_and_some_are_held_up(every_s: float) -> None:
    arrivals = streams_with_long_prompts(16, every_s, num_prompts=round(40 / every_s))
    outcome = Traffic(noisy(cpu_step_s)).run(arrivals, STREAMS_END_S)
    assert outcome.between_tokens(99) <= max(0.25, 2.3 * outcome.between_tokens(50))


@pytest.mark.parametrize(("num_streams", "every_s"), [(16, 8.0), (4, 4.0), (1, 4.0)])
def test_a_long_prompt_that_comes_alone_has_its_first_token_not_much_later_than_without_streams(
    num_streams: int, every_s: float
) -> None:
    """1,000 tokens take 1.6 s alone; a step of 240 ms gives its decodes 30 of them, and some room for error."""
    arrivals = streams_with_long_prompts(num_streams, every_s, num_prompts=round(40 / every_s))
    outcome = Traffic().run(arrivals, STREAMS_END_S)
    late = sorted(outcome.first_token_s.values())[num_streams:]
    assert max(late) < 1.4 * 1.6


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
    strict = Traffic(target_itl_ms=60).run(arrivals, STREAMS_END_S)
    assert statistics.mean(generous.first_token_s.values()) < 0.7 * statistics.mean(strict.first_token_s.values())


def test_a_later_first_token_lets_streams_run_more_evenly() -> None:
    arrivals = streams_with_long_prompts(num_streams=4, every_s=8.0, num_prompts=5)
    soon, late = (Traffic(target_ttft_ms=ms).run(arrivals, STREAMS_END_S) for ms in (500, 4_000))
    assert late.between_tokens(99) <= 0.5 * soon.between_tokens(99)
    assert max(late.first_token_s.values()) < 4.4


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
    budget = taught(cpu_step_s, 16, [16, 64])
    few, many = (
        budget.prompt_tokens(num_decodes=16, num_flowing=4, prompts=waiting(1, count=count)) or 0 for count in (2, 12)
    )
    assert few == pytest.approx(0.85 * 30 / 1.6, abs=1)
    assert many == pytest.approx(3 * few, abs=3)


def test_a_chunk_grows_with_the_time_that_a_prompt_has_waited_up_to_the_longest_step() -> None:
    budget = taught(cpu_step_s, 16, [16, 64, 128])
    sizes = [
        budget.prompt_tokens(num_decodes=16, num_flowing=16, prompts=waiting(100, waited_s)) or 0
        for waited_s in (0.0, 0.7, 0.74, 0.78, 2.0, 60.0)
    ]
    assert sizes[0] == pytest.approx(0.85 * 30 / 1.6, abs=4)  # as long as the decodes; without a small rest
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3] < sizes[4] == sizes[5]
    assert 0.8 * LONGEST_STEP_S < cpu_step_s(16, sizes[-1]) <= LONGEST_STEP_S


def test_a_chunk_is_as_large_as_the_objective_of_every_prompt_needs() -> None:
    """The second of two is due before the first, whose tokens come before."""
    budget = taught(cpu_step_s, 16, [16, 64, 128])
    patient = budget.prompt_tokens(num_decodes=16, num_flowing=16, prompts=waiting(100))
    hurried = budget.prompt_tokens(num_decodes=16, num_flowing=16, prompts=[*waiting(100), *waiting(8, 0.75)])
    assert (patient or 0) < (hurried or 0)


def test_with_an_objective_for_streams_a_prompt_that_is_late_gets_no_more_than_that_leaves() -> None:
    budget = taught(cpu_step_s, 16, [16, 64], target_itl_s=0.06)
    late = budget.prompt_tokens(num_decodes=16, num_flowing=16, prompts=waiting(1_000, 60.0))
    assert 0 < (late or 0) <= 30 / 1.6


def test_what_a_step_with_prompts_costs_whatever_its_size_is_learnt_and_amortised() -> None:
    """16 tokens a step, the least there are, would be 627 a second."""
    traffic = Traffic(graph_step_s, max_num_batched_tokens=2048)
    streams = [Arrival(0.0, 32, 3_000) for _ in range(16)]
    prompts = [Arrival(1.0 + 0.5 * number, 2_000, 2) for number in range(20)]
    outcome = traffic.run(streams + prompts, until_s=12.0)
    chunks = [plan.num_tokens - 16 for plan in traffic.executor.plans if plan.num_tokens > 16 + 16]
    took_s = sorted(outcome.first_token_s.values())[16:]
    assert len(took_s) == 20
    assert statistics.median(took_s) < 2 * graph_step_s(16, 1_000) + graph_step_s(16, 0) + 0.01
    assert statistics.median(chunks) >= 900


def test_a_chunk_that_would_tell_the_fixed_cost_is_not_tried_where_it_would_take_too_long() -> None:
    budget = taught(cpu_step_s, 16, [100])
    size = budget.prompt_tokens(num_decodes=16, num_flowing=16, prompts=waiting(50))
    assert 16 <= (size or 0) <= 18


@pytest.mark.parametrize(
    ("decode_s", "fixed_s", "num_tokens"),
    [(0.2, 0.0, 0.85 * 3 * 0.2 / 0.0025), (0.045, 0.15, (0.85 * (3 * 0.045 + 4 * 0.15) - 0.15) / 0.0025)],
)
def test_where_steps_are_slow_prompts_that_are_late_take_three_times_what_every_such_step_takes(
    decode_s: float, fixed_s: float, num_tokens: float
) -> None:
    budget = taught(lambda d, p: decode_s + (fixed_s + 0.0025 * p if p else 0.0), 4, [32, 200])
    size = budget.prompt_tokens(num_decodes=4, num_flowing=4, prompts=waiting(5_000, 60.0))
    assert size == pytest.approx(num_tokens, abs=2)


def test_chunks_leave_no_small_rest_that_would_cost_a_step_of_its_own() -> None:
    budget = taught(graph_step_s, 16, [16, 512, 1024])
    size = budget.prompt_tokens(num_decodes=16, num_flowing=16, prompts=[*waiting(1_500), *waiting(600)])
    assert size == 1_050  # 1,000 would amortise what a chunk costs


def test_it_is_learnt_even_where_no_prompt_is_late() -> None:
    budget = PrefillBudget(target_ttft_s=60.0)
    budget.observe(16, 0, graph_step_s(16, 0))
    sizes = []
    for _ in range(9):
        size = budget.prompt_tokens(num_decodes=16, num_flowing=16, prompts=waiting(10_000)) or 0
        sizes.append(size)
        budget.observe(16, size, graph_step_s(16, size))
        budget.observe(16, 0, graph_step_s(16, 0))
    assert sizes[:3] == [16, 32, 64]
    assert sizes[-1] == pytest.approx(1_000, rel=0.15)


def test_streams_that_have_just_begun_let_the_others_of_their_burst_catch_up() -> None:
    budget = PrefillBudget()
    budget.observe(4, 0, 0.03)
    assert budget.prompt_tokens(num_decodes=4, num_flowing=0, prompts=waiting(100, count=4)) is None
    assert budget.prompt_tokens(num_decodes=4, num_flowing=1, prompts=waiting(100, count=4)) == 16


def test_a_short_prompt_passes_a_long_one_that_came_shortly_before() -> None:
    arrivals = [Arrival(0.0, 8, 400), Arrival(2.0, 2_000, 2), Arrival(2.3, 64, 2)]
    first_token_s = Traffic().run(arrivals).first_token_s
    assert first_token_s["r0"] < 0.5  # names count down: r0 came last
    assert first_token_s["r1"] < 1.4 * 3.2


def test_a_long_prompt_gets_on_among_ever_more_short_ones() -> None:
    """Short ones come faster than they can be computed, for a minute; the long one takes 3.2 s alone."""
    short = [Arrival(2.0 + 0.08 * number, 64, 2) for number in range(750)]
    outcome = Traffic(max_num_seqs=512, num_kv_blocks=32_768).run(
        [Arrival(0.0, 8, 400), Arrival(1.9, 2_000, 2), *short]
    )
    assert 3.2 < outcome.first_token_s["r750"] < 15.0  # names count down: it came second
    assert outcome.duration_s > 60
