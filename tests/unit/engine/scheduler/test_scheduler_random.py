"""Thousands of random additions, aborts and steps under several profiles, with the books checked after each."""

import random
from itertools import cycle, islice
from typing import Any

import pytest

from orcinus.engine.messages import StepPlan
from orcinus.engine.sampling_params import Grammar, SamplingParams
from tests.unit.engine.scheduler.simulator import Drafts, Forcing, SimulatedEngine, reference

PROFILES: dict[str, dict[str, object]] = {
    "roomy": {},
    "few blocks": {"num_kv_blocks": 17},
    "few blocks, no prefix cache": {"num_kv_blocks": 17, "enable_prefix_caching": False},
    "tiny budget": {"max_num_batched_tokens": 4},
    "many slots, few blocks": {"max_num_seqs": 12, "num_kv_blocks": 24},
    "static": {"batching": "static", "num_kv_blocks": 20},
    "interleaved": {"batching": "interleaved", "num_kv_blocks": 20},
    "sequential": {"batching": "sequential", "num_kv_blocks": 16},
    "windows": {"windows": (6, 13), "max_num_batched_tokens": 8},
    "windows, few blocks": {"windows": (1, 6, 20), "num_kv_blocks": 17},
    "windows, few blocks, no prefix cache": {"windows": (6,), "num_kv_blocks": 17, "enable_prefix_caching": False},
    "windows, blocks of one token": {"windows": (6,), "block_size": 1, "num_kv_blocks": 100},
    "states": {"state_bytes": 64, "num_state_snapshots": 40},
    "states, few snapshots": {"state_bytes": 64, "num_state_snapshots": 5},
    "states, one snapshot, few blocks": {"state_bytes": 64, "num_state_snapshots": 1, "num_kv_blocks": 17},
    "states, few blocks": {"state_bytes": 64, "num_state_snapshots": 16, "num_kv_blocks": 17},
    "states, windows": {"state_bytes": 64, "num_state_snapshots": 16, "windows": (6,), "max_num_batched_tokens": 8},
    "states, blocks of one token": {
        "state_bytes": 64,
        "num_state_snapshots": 30,
        "block_size": 1,
        "num_kv_blocks": 100,
    },
    "states, none of which is kept": {"state_bytes": 64, "num_kv_blocks": 20},
}
# Whether steps are launched ahead, whether some fail, who asks, and whether there are drafts: each pair of values.
WAYS: dict[str, tuple[bool, bool, str, bool]] = {
    "ahead-faults-drafts": (True, True, "abc", True),
    "ahead-sound-one client": (True, False, "a", False),
    "in turn-faults-one client": (False, True, "a", False),
    "in turn-sound-drafts": (False, False, "abc", True),
    "ahead-faults-three clients": (True, True, "abc", False),
    "in turn-sound-three clients": (False, False, "abc", False),
}
QUICK_WAY = "ahead-faults-drafts"
NUM_OPERATIONS = 1_000


def cases() -> list[Any]:
    """Return each profile in the quick way and two others, so that what profiles have in common sees all ways."""
    others = cycle(way for way in WAYS if way != QUICK_WAY)
    return [
        pytest.param(profile, *WAYS[way], id=f"{profile}-{way}", marks=() if way == QUICK_WAY else pytest.mark.slow)
        for profile in PROFILES
        for way in (QUICK_WAY, *islice(others, 2))
    ]


class Faults:
    """Requests whose names say so make any step fail in which they sample; now and then memory runs out."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.num_faults = 0

    def __call__(self, plan: StepPlan) -> None:
        if any(item.num_samples and "culprit" in item.request_id for item in plan.scheduled):
            self.num_faults += 1
            raise RuntimeError("a culprit")
        if len(plan.scheduled) > 1 and self._rng.random() < 0.02:
            self.num_faults += 1
            raise MemoryError


@pytest.mark.parametrize(("profile", "runs_ahead", "has_faults", "clients", "has_drafts"), cases())
def test_books_balance_and_tokens_are_right_after_every_random_operation(
    profile: str, runs_ahead: bool, has_faults: bool, clients: str, has_drafts: bool
) -> None:
    rng = random.Random(profile)
    drafts, forcing = Drafts(random.Random(profile)), Forcing(random.Random(profile))
    engine = SimulatedEngine(
        runs_ahead=runs_ahead, drafts=drafts if has_drafts else None, forcing=forcing, **PROFILES[profile]
    )
    faults = Faults(random.Random(profile))
    if has_faults:
        engine.executor.fault = faults
    shared = [[rng.randrange(50) for _ in range(40)] for _ in range(3)]
    prompts: dict[str, tuple[list[int], SamplingParams]] = {}
    aborted: set[str] = set()
    preemptions = refills = num_forced = 0
    for number in range(NUM_OPERATIONS):
        action = rng.random()
        if action < 0.2 and engine.core.scheduler.num_waiting < 30:
            name = f"culprit{number}" if has_faults and number % 20 == 0 else f"r{number}"
            tokens = rng.choice(shared)[: rng.randrange(0, 40)] + [
                rng.randrange(1, 50) for _ in range(rng.randrange(1, 9))
            ]
            max_tokens = rng.randrange(1, 64 - len(tokens) + 1)
            fields: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": rng.random() < 0.5}
            if rng.random() < 0.1:
                fields |= rng.choice([{"presence_penalty": 0.5}, {"bad_words_token_ids": ((3,), (4, 5))}])
            if rng.random() < 0.2:
                fields["grammar"] = Grammar("regex", ".*")
            prompts[name] = (tokens, SamplingParams(**fields))
            engine.add(name, tokens, **fields, priority=rng.choice([0, 0, 0, 1, -1]), client=rng.choice(clients))
        elif action < 0.25 and (alive := [name for name in prompts if name not in engine.finish_reasons]):
            victim = rng.choice(alive)
            aborted.add(victim)
            engine.core.abort_requests([victim])
        else:
            stats = engine.step().stats
            num_forced += stats.num_forced_tokens
            preemptions += stats.num_preemptions
            refills += stats.num_slots_refilled
        engine.core.scheduler.check_integrity()
        engine.clock.now += rng.random() * 0.02
    engine.run()
    for name, (tokens, sampling) in prompts.items():
        expected = reference(tokens, sampling, 64)
        if "culprit" in name:
            assert engine.tokens[name] == []
            assert name in aborted or engine.finish_reasons[name] == "error"
        elif name in engine.finish_reasons:
            assert engine.tokens[name] == expected, name
        else:
            assert name in aborted
            assert engine.tokens[name] == expected[: len(engine.tokens[name])], name
    assert refills > 10
    assert 25 < num_forced <= forcing.num_tokens
    assert preemptions > 0 or "few blocks" not in profile
    assert (faults.num_faults > 0) == has_faults
    assert engine.core.stats().num_kv_blocks_used == 0
    executor = engine.executor
    assert min(executor.num_loads, executor.num_saves) > (0 if "num_state_snapshots" in PROFILES[profile] else -1)
    has_drafts = has_drafts and profile != "states, blocks of one token"  # where each token ends a block
    counts = (drafts.num_accepted, drafts.num_rejected, drafts.num_spoiled_steps)
    assert min(counts) > (0 if has_drafts else -1)
    assert max(counts) == 0 or has_drafts
