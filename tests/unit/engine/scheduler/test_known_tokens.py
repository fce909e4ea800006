"""Requests that get tokens which nobody sampled: a decode computes them as one chunk, and nobody waits for that."""

import pytest

from orcinus.engine.messages import ScheduledRequest
from orcinus.engine.sampling_params import Grammar, SamplingParams
from orcinus.engine.scheduler.prefill_budget import PrefillBudget
from tests.unit.engine.scheduler.simulator import Always, SimulatedEngine, reference

ANY = Grammar("regex", ".*")


def prompt(length: int, seed: int = 1) -> list[int]:
    return [1 + (seed * 31 + index * 7) % 49 for index in range(length)]


def shares(engine: SimulatedEngine, request_id: str) -> list[ScheduledRequest]:
    return [item for plan in engine.executor.plans for item in plan.scheduled if item.request_id == request_id]


def expected(tokens: list[int], max_tokens: int) -> list[int]:
    return reference(tokens, SamplingParams(max_tokens=max_tokens, ignore_eos=True), 64)


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_forced_tokens_are_computed_with_the_sampled_one_and_counted(runs_ahead: bool) -> None:
    engine = SimulatedEngine(forcing=Always(5), runs_ahead=runs_ahead)
    engine.add("a", prompt(5), max_tokens=12, ignore_eos=True, grammar=ANY)
    num_forced = 0
    while engine.core.has_work:
        num_forced += engine.step().stats.num_forced_tokens
        engine.core.scheduler.check_integrity()
    assert engine.tokens["a"] == expected(prompt(5), 12)
    assert [(item.num_tokens, item.num_samples) for item in shares(engine, "a")] == [(5, 1), (6, 1)]
    assert num_forced == 10


def test_a_limit_within_what_is_forced_cuts_it_there() -> None:
    engine = SimulatedEngine(forcing=Always(5))
    engine.add("a", prompt(5), max_tokens=9, ignore_eos=True, grammar=ANY)
    engine.run()
    assert engine.tokens["a"] == expected(prompt(5), 9)
    assert engine.finish_reasons["a"] == "length"


def test_those_who_decode_beside_it_have_a_token_in_each_step() -> None:
    """A step of eight tokens, for three requests, of which one has twenty to compute."""
    engine = SimulatedEngine(forcing=Always(20), max_num_batched_tokens=8)
    for name in ("b", "c"):
        engine.add(name, prompt(3, ord(name)), max_tokens=30, ignore_eos=True)
    for _ in range(4):
        engine.step()
    engine.add("a", prompt(2), max_tokens=45, ignore_eos=True, grammar=ANY)
    engine.run()
    for name in ("b", "c"):
        decodes = [item for item in shares(engine, name) if item.num_computed_tokens >= 3]
        assert {item.num_tokens for item in decodes} == {1}
        plans = [{item.request_id for item in plan.scheduled} for plan in engine.executor.plans]
        steps = [number for number, names in enumerate(plans) if name in names]
        assert steps == [*range(steps[0], steps[-1] + 1)], "it waited for a step"
    chunks = [item for item in shares(engine, "a") if item.num_tokens > 1 and item.num_computed_tokens >= 2]
    assert max(item.num_tokens for item in chunks) <= 6
    assert engine.tokens["a"] == expected(prompt(2), 45)


def test_a_prompt_goes_on_beside_what_is_forced() -> None:
    engine = SimulatedEngine(forcing=Always(20), max_num_batched_tokens=8)
    engine.add("a", prompt(2), max_tokens=60, ignore_eos=True, grammar=ANY)
    engine.step()
    engine.add("long", prompt(40, 3), max_tokens=2, ignore_eos=True)
    num_before = len(engine.executor.plans)
    while not any(item.num_samples for item in shares(engine, "long")):
        engine.step()
    plans = [{item.request_id for item in plan.scheduled} for plan in engine.executor.plans[num_before:]]
    assert len([names for names in plans if "long" in names]) > len(plans) / 2, "prompts starve"
    assert all("a" in names for names in plans)
    engine.run()
    assert engine.tokens["a"] == expected(prompt(2), 60)


def test_nobody_is_preempted_for_known_tokens_but_for_the_next_one() -> None:
    """Blocks for all prompts, and few more: what is forced is computed token by token where there is no room."""
    engine = SimulatedEngine(forcing=Always(12), num_kv_blocks=16, max_num_seqs=3)
    for name in "abc":
        engine.add(name, prompt(14, ord(name)), max_tokens=20, ignore_eos=True, grammar=ANY)
    engine.run()
    for name in "abc":
        assert engine.tokens[name] == expected(prompt(14, ord(name)), 20)


def test_known_tokens_beside_others_take_no_longer_than_a_prompt_may() -> None:
    budget = PrefillBudget(target_itl_s=0.1)
    for _ in range(20):
        budget.observe(8, 0, 0.02)
        budget.observe(8, 50, 0.07)
    most = budget.known_tokens(8)
    assert 30 < most <= 80
    assert PrefillBudget(target_itl_s=0.02).known_tokens(8) <= 16
