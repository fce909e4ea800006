"""The scheduler under requests that arrive one by one, on a virtual clock, at the cost of a model on two cores."""

import pytest

from bench.simulation.__main__ import Policy, arrivals, run
from bench.simulation.costs import PROFILES, StepCosts, StepShape, shape_of
from bench.simulation.traffic import Arrival
from orcinus.engine.messages import ScheduledRequest, StepPlan
from orcinus.server.load.figures import Summary

DEFAULT = Policy("default")


def served(rate: float, policy: Policy = DEFAULT, seed: int = 0) -> Summary:
    return run(PROFILES["cpu"], policy, arrivals(rate, 50, seed))


@pytest.mark.parametrize(("rate", "least_goodput"), [(0.4, 0.9), (0.7, 0.85), (1.0, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_serves_both_those_who_wait_for_a_first_token_and_those_who_read(
    rate: float, least_goodput: float, seed: int
) -> None:
    default, unlimited = served(rate, seed=seed), served(rate, Policy("no limit", is_unlimited=True), seed)
    assert default.itl_ms is not None
    assert default.ttft_ms is not None
    assert unlimited.ttft_ms is not None
    assert default.itl_ms.p99 <= 250
    assert default.ttft_ms.median <= 1.5 * unlimited.ttft_ms.median
    assert default.ttft_ms.p99 <= 1.5 * unlimited.ttft_ms.p99
    assert default.goodput is not None
    assert default.goodput.share >= least_goodput


def test_an_objective_for_the_time_between_tokens_is_kept() -> None:
    served_within = served(0.7, Policy("100 ms", target_itl_ms=100))
    assert served_within.itl_ms is not None
    assert served_within.itl_ms.p99 <= 100


def test_a_client_waits_for_its_own_steps_and_those_before_it() -> None:
    """Two steps of a prompt, 512 tokens and 88, then one for each token after the first."""
    costs = StepCosts(step_s=1.0, token_s=0.01)
    summary = run(costs, DEFAULT, [Arrival(5.0, 600, 3, content=1)])
    assert summary.ttft_ms is not None
    assert summary.itl_ms is not None
    assert summary.ttft_ms.median == pytest.approx(1000 * (1.0 + 5.12 + 1.0 + 0.88))
    assert summary.itl_ms.median == pytest.approx(1000 * 1.01)
    assert summary.prompt_tokens == 600
    assert summary.output_tokens == 3


def test_a_chunk_of_one_token_that_ends_a_prompt_counts_as_a_decode() -> None:
    plan = StepPlan(
        scheduled=[
            ScheduledRequest("decode", num_computed_tokens=9, num_tokens=1),
            ScheduledRequest("end", num_computed_tokens=4, num_tokens=1),
            ScheduledRequest("chunk", num_computed_tokens=4, num_tokens=6, num_samples=0),
        ]
    )
    assert shape_of(plan) == StepShape(num_decodes=2, num_prompt_tokens=6, num_decode_keys=15, num_prompt_keys=42)


def test_a_prompt_in_a_step_costs_its_tokens_its_keys_and_what_any_prompt_does() -> None:
    costs = StepCosts(step_s=1.0, token_s=0.1, mixed_s=10.0, num_free_rows=4, decode_key_s=0.001, prompt_key_s=0.01)
    assert costs(StepShape(num_decodes=2, num_prompt_tokens=0, num_decode_keys=100)) == pytest.approx(1.1)
    assert costs(StepShape(2, 3, 100, 7)) == pytest.approx(1.0 + 10.0 + 0.1 + 0.1 + 0.07)
