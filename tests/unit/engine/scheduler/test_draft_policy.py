"""How many drafts a step tries, given what they cost and how often they were right."""

import itertools
from collections.abc import Callable

import pytest

from orcinus.engine.messages import DraftBasis, Proposal
from orcinus.engine.scheduler.draft_policy import DraftPolicy
from tests.unit.engine.scheduler.simulator import SimulatedEngine
from tests.unit.engine.scheduler.test_drafts import Right, num_drafts, prompt

RIGHT = Proposal([5] * 8, "long match")


def tries(
    policy: DraftPolicy,
    *,
    step_s: Callable[[int, int], float],
    is_right: Callable[[int], bool],
    num_requests: int = 1,
    num_drafting: int | None = None,
    num_steps: int = 200,
    longest: int = 8,
    basis: DraftBasis = "long match",
) -> list[int]:
    """Let requests decode, some of which have drafts in each step; return how many of them each step tried.

    `is_right` says it of the draft at some position in each proposal.
    """
    names = [f"r{i}" for i in range(num_requests if num_drafting is None else num_drafting)]
    num_accepting = next((i for i in range(longest) if not is_right(i)), longest)
    counts = []
    chosen: dict[str, list[int]] = {}
    for _ in range(num_steps):
        counts.append(sum(map(len, chosen.values())))
        policy.observe_step(num_requests, counts[-1], step_s(num_requests, counts[-1]))
        for name in names:
            num_tokens = 1 + min(num_accepting, len(chosen.get(name, [])))
            policy.observe_tokens(name, [5] * num_tokens)
        drafts = [5 if is_right(i) else 7 for i in range(longest)]
        chosen = policy.choose({name: Proposal(drafts, basis) for name in names}, num_requests)
    return counts


def cheap(num_decodes: int, num_drafts: int) -> float:
    return 0.02 + 0.0002 * (num_decodes + num_drafts)


def dear(num_decodes: int, num_drafts: int) -> float:
    return 0.005 * (num_decodes + num_drafts)


def test_right_drafts_that_cost_little_are_tried_to_the_last() -> None:
    counts = tries(DraftPolicy(16), step_s=cheap, is_right=lambda position: True)
    assert counts[0] == 0
    assert sum(counts[100:]) > 0.9 * 8 * 100
    assert 0 in counts[100:], "what decodes take alone is seen again"


def test_drafts_that_are_never_right_are_given_up_and_cost_nothing_from_then_on() -> None:
    counts = tries(DraftPolicy(16), step_s=cheap, is_right=lambda position: False)
    assert not any(counts[50:])


def test_as_many_are_tried_as_are_right() -> None:
    counts = tries(DraftPolicy(16), step_s=lambda n, d: 0.02 + 0.003 * d, is_right=lambda position: position < 3)
    assert max(counts[50:]) == 3


def test_right_drafts_are_not_tried_where_a_row_costs_as_much_as_a_step() -> None:
    counts = tries(DraftPolicy(16), step_s=dear, is_right=lambda position: True, num_steps=1000)
    assert sum(count > 0 for count in counts) <= 10
    assert any(counts[500:]), "what they cost is looked at again"


def test_a_fixed_cost_of_drafts_is_paid_where_the_tokens_are_worth_it() -> None:
    def replayed(num_decodes: int, num_drafts: int) -> float:
        return 0.005 + (0.02 if num_drafts else 0.0)

    one = tries(DraftPolicy(64), step_s=replayed, is_right=lambda position: True, num_requests=16, num_drafting=1)
    all_ = tries(DraftPolicy(256), step_s=replayed, is_right=lambda position: True, num_requests=16)
    assert sum(count > 0 for count in one) <= 6
    assert sum(all_[100:]) > 0.9 * 100 * 128


def test_a_request_whose_drafts_become_right_tries_them_though_it_has_tried_none_for_long() -> None:
    policy = DraftPolicy(16)
    tries(policy, step_s=cheap, is_right=lambda position: False)
    assert any(tries(policy, step_s=cheap, is_right=lambda position: True, num_steps=30))


def test_no_step_is_to_take_longer_than_the_objective() -> None:
    counts = tries(
        DraftPolicy(16, target_itl_s=0.025), step_s=lambda n, d: 0.02 + 0.001 * d, is_right=lambda position: True
    )
    assert 4 <= max(counts[50:]) <= 5


def test_a_step_tries_no_more_than_the_limit_and_the_likeliest() -> None:
    policy = DraftPolicy(8)
    counts = tries(policy, step_s=cheap, is_right=lambda position: True, num_requests=4)
    assert max(counts) == 8
    chosen = policy.choose(dict.fromkeys(("r0", "r1", "r2", "r3", "new"), RIGHT), 4)
    assert "new" not in chosen or len(chosen["new"]) <= 8


def test_what_decodes_take_alone_is_seen_in_one_step_though_drafts_are_chosen_before_a_step_is_observed() -> None:
    policy = DraftPolicy(16)
    num_drafts, counts = 0, []
    for _ in range(200):
        policy.observe_tokens("a", [5] * (1 + num_drafts))
        chosen = policy.choose({"a": RIGHT}, 1)
        policy.observe_step(1, num_drafts, cheap(1, num_drafts))
        counts.append(num_drafts)
        num_drafts = len(chosen.get("a", []))
    alone = [i for i, count in enumerate(counts) if count == 0]
    assert alone[:2] == [0, 1], "nothing is known before the first step is observed"
    assert len(alone) > 5
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(alone[1:]))


def test_positions_that_nothing_is_known_of_are_thought_of_as_the_ones_before_them() -> None:
    counts = tries(
        DraftPolicy(32),
        step_s=lambda n, d: 0.1 * (1 + 0.04 * n + 0.06 * d),
        is_right=lambda position: True,
        num_requests=4,
        num_steps=12,
    )
    assert max(counts) == 32


def test_what_drafts_are_based_on_is_told_apart_in_a_request_and_in_those_that_follow() -> None:
    policy = DraftPolicy(16)
    tries(policy, step_s=cheap, is_right=lambda position: False, basis="substitution")
    tries(policy, step_s=cheap, is_right=lambda position: True, basis="realignment")
    for name in ("r0", "new"):
        proposals = {"substitution": Proposal([5] * 8, "substitution"), "realignment": Proposal([5] * 8, "realignment")}
        tried = {basis: len(policy.choose({name: each}, 1).get(name, [])) for basis, each in proposals.items()}
        assert tried == {"substitution": 0, "realignment": 8}
        policy.forget(name)


def looks(policy: DraftPolicy, num_decodes: int, num_steps: int = 200) -> int:
    """Return in how many of the latest steps drafts were looked for."""
    return sum(policy.wants_proposals(num_decodes) for _ in range(num_steps))


def test_beside_many_decodes_drafts_are_looked_for_more_seldom_until_some_are_tried() -> None:
    policy = DraftPolicy(16)
    assert looks(policy, 4) == 200
    assert looks(policy, 32) < 60
    assert looks(policy, 32) == 25
    assert looks(policy, 4) == 200
    tries(policy, step_s=cheap, is_right=lambda position: True, num_requests=32, num_drafting=1)
    assert looks(policy, 32, 8) == 8


@pytest.mark.parametrize(("period", "is_worth_it"), [(1, True), (6, False)])
def test_beside_many_decodes_drafts_that_bring_next_to_nothing_are_looked_for_more_seldom(
    period: int, is_worth_it: bool
) -> None:
    policy = DraftPolicy(32)
    num_looks = num_tried = num_drafts = 0
    for _ in range(300):
        policy.observe_step(32, num_drafts, cheap(32, num_drafts))
        policy.observe_tokens("r0", [5] * (1 + num_drafts))
        is_looked_for = policy.wants_proposals(32)
        num_looks += is_looked_for
        proposals = {"r0": Proposal([5, 5, 5], "substitution")} if is_looked_for and num_looks % period == 0 else {}
        num_drafts = sum(map(len, policy.choose(proposals, 32).values())) if is_looked_for else 0
        num_tried += num_drafts > 0
    assert num_tried > 3
    assert (num_looks > 250) == is_worth_it
    assert (num_looks < 100) != is_worth_it


def test_the_plan_says_whether_drafts_are_wanted() -> None:
    engine = SimulatedEngine(speculation="auto", max_num_seqs=16, num_kv_blocks=256)
    for i in range(16):
        engine.add(f"r{i}", prompt(5), max_tokens=40, ignore_eos=True)
    engine.run()
    wanted = [plan.wants_drafts for plan in engine.executor.plans]
    assert all(wanted[:8])
    assert sum(wanted) < len(wanted) - 8
    plain = SimulatedEngine(speculation="ngram")
    plain.add("a", prompt(5), max_tokens=20, ignore_eos=True)
    plain.run()
    assert all(plan.wants_drafts for plan in plain.executor.plans)


def test_what_is_known_of_a_request_goes_with_it() -> None:
    policy = DraftPolicy(16)
    tries(policy, step_s=cheap, is_right=lambda position: True)
    assert policy._records.keys() == {"r0"}
    policy.forget("r0")
    policy.forget("r0")
    assert not policy._records


def test_the_scheduler_weighs_drafts_counts_them_and_forgets_a_request_that_ended() -> None:
    engine = SimulatedEngine(drafts=Right(3, 2), speculation="auto")
    engine.add("a", prompt(5), max_tokens=40, ignore_eos=True)
    num_tried = num_accepted = 0
    while engine.core.has_work:
        outputs = engine.step()
        num_tried += outputs.stats.num_draft_tokens
        num_accepted += outputs.stats.num_accepted_drafts
        assert outputs.stats.accepted_drafts == [
            min(1, tried * right) for tried, right in zip(outputs.stats.tried_drafts, (1, 1, 0), strict=False)
        ]
        for delta in outputs.deltas:
            assert (delta.num_draft_tokens, delta.num_accepted_drafts) == (num_tried, num_accepted)
    assert num_tried == sum(num_drafts(engine, "a"))
    assert 0 < num_accepted < num_tried
    policy = engine.core.scheduler._drafting.policy
    assert policy is not None
    assert not policy._records
