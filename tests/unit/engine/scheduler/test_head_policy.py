"""In which steps a model's head for multi-token prediction runs, given what it costs and how often it is right."""

import random
from typing import Any

import pytest

from orcinus.engine.messages import Proposal
from orcinus.engine.scheduler.draft_policy import DraftPolicy
from orcinus.engine.scheduler.head_policy import HeadPolicy
from tests.unit.engine.scheduler.simulator import SimulatedEngine
from tests.unit.engine.scheduler.test_drafts import Right, prompt

_STEP_S, _ROW_S = 0.02, 0.002


class Decoding:
    """Lets requests decode, for whom a head guesses; `speed` is that of steps without drafts and without the head."""

    def __init__(self, num_requests: int, head_s: float) -> None:
        self.policy = HeadPolicy(lambda: DraftPolicy(16))
        self._names = [f"r{i}" for i in range(num_requests)]
        self._head_s = head_s
        self._rng = random.Random(5)
        self._drafts: dict[str, list[int]] = {}

    def run(self, num_steps: int, rate: float) -> tuple[list[bool], float]:
        """Return in which steps the head ran, and the tokens a second over those without."""
        uses, num_tokens, seconds = [], 0, 0.0
        for _ in range(num_steps):
            uses.append(self.policy.runs_beside(len(self._names)))
            num_drafts = sum(map(len, self._drafts.values()))
            step_s = _STEP_S + _ROW_S * num_drafts + self._head_s * uses[-1]
            seconds += step_s
            num_tokens += self._bring_tokens()
            guesses = {
                name: Proposal([5 if self._rng.random() < rate else 7], "head") for name in self._names if uses[-1]
            }
            policy = self.policy.running if uses[-1] else self.policy.resting
            self._drafts = policy.choose(guesses, len(self._names))
            policy.observe_step(len(self._names), num_drafts, step_s)
            self.policy.observe_step(len(self._names))
        return uses, num_tokens / seconds * _STEP_S / len(self._names)

    def _bring_tokens(self) -> int:
        num_tokens = 0
        for name in self._names:
            tokens = [5, 5] if self._drafts.get(name) == [5] else [5]
            num_tokens += len(tokens)
            for policy in (self.policy.running, self.policy.resting):
                policy.observe_tokens(name, tokens)
        return num_tokens


@pytest.mark.parametrize("num_requests", [1, 4, 32])
@pytest.mark.parametrize("head_s", [0.001, 0.01])
def test_a_head_that_is_never_right_costs_little(num_requests: int, head_s: float) -> None:
    uses, speed = Decoding(num_requests, head_s).run(320, 0.0)
    assert not uses[0]
    assert any(uses)
    assert speed > 0.98


@pytest.mark.parametrize(("head_s", "least"), [(0.001, 1.6), (0.01, 1.15)])
def test_a_head_that_is_right_runs_nearly_always(head_s: float, least: float) -> None:
    uses, speed = Decoding(1, head_s).run(1200, 1.0)
    assert sum(uses) > 0.97 * len(uses)
    assert not all(uses[600:]), "what steps take without it is seen again"
    assert speed > least


def test_a_head_whose_right_guesses_bring_less_than_it_takes_rests() -> None:
    uses, speed = Decoding(1, 0.03).run(2000, 1.0)
    assert sum(uses) < 0.05 * len(uses)
    assert speed > 0.98


def test_a_head_runs_beside_few_requests_though_it_does_not_beside_many() -> None:
    few, many = Decoding(1, 0.005), Decoding(32, 0.04)
    many.policy = few.policy
    assert few.run(100, 1.0)[0][-1]
    assert not many.run(100, 1.0)[0][-1]
    assert few.run(1, 1.0)[0] == [True]


def test_a_head_whose_guesses_become_right_runs_again() -> None:
    decoding = Decoding(1, 0.002)
    assert not any(decoding.run(300, 0.0)[0][50:250])
    assert sum(decoding.run(800, 1.0)[0]) > 200


def heads(engine: SimulatedEngine) -> list[tuple[str, bool]]:
    """Return what the head did in each step, and whether that had a part of a prompt that is more than a token."""
    return [(plan.head, any(not item.num_samples for item in plan.scheduled)) for plan in engine.executor.plans]


def test_where_it_rests_it_runs_over_prompts_alone() -> None:
    engine = SimulatedEngine(
        drafts=Right(1, 0), speculation="auto", has_mtp_head=True, max_num_batched_tokens=8, max_num_seqs=4
    )
    for i in range(12):
        engine.add(f"r{i}", prompt(20, seed=i), max_tokens=20, ignore_eos=True)
    engine.run()
    assert {head for head, has_chunk in heads(engine) if has_chunk} == {"caches", "guesses"}
    assert {head for head, has_chunk in heads(engine)} == {"caches", "guesses", "rests"}


@pytest.mark.parametrize("changes", [{"speculation": "mtp", "has_mtp_head": True}, {"speculation": "auto"}])
def test_a_head_that_is_asked_for_never_rests(changes: dict[str, Any]) -> None:
    engine = SimulatedEngine(drafts=Right(1, 0), **changes)
    engine.add("a", prompt(20), max_tokens=40, ignore_eos=True)
    engine.run()
    assert {head for head, _ in heads(engine)} == {"guesses"}


def test_what_is_known_of_a_request_goes_with_it() -> None:
    seen: list[int] = []
    engine = SimulatedEngine(drafts=Right(1, 1), speculation="auto", has_mtp_head=True)
    engine.add("a", prompt(5), max_tokens=50, ignore_eos=True)
    head = engine.core.scheduler._drafting._head
    assert head is not None
    while engine.core.has_work:
        engine.step()
        seen.append(len(head.running._records))
    assert max(seen) == 1
    assert not head.running._records
    assert not head.resting._records
