"""Requests that try drafts: what is planned of them, what is taken back, and that nobody else pays for it."""

import random
from collections.abc import Callable, Sequence

import pytest

from orcinus.engine.messages import Proposal, ScheduledRequest, StepPlan, StepResult, TokenLogprobs
from orcinus.engine.sampling_params import Grammar, SamplingParams
from tests.unit.engine.scheduler.simulator import EOS, VOCAB_SIZE, Drafts, SimulatedEngine, extend, reference, sample


def prompt(length: int, seed: int = 1) -> list[int]:
    return [1 + (seed * 31 + index * 7) % 49 for index in range(length)]


class Right(Drafts):
    """Proposes `count` tokens; the first `num_right` are those that will come. No step is spoiled."""

    def __init__(self, count: int = 3, num_right: int | None = None) -> None:
        super().__init__(random.Random(0))
        self._count = count
        self._num_right = count if num_right is None else num_right

    def propose(self, prefix_hash: int) -> list[int]:
        drafts = []
        for i in range(self._count):
            token = sample(prefix_hash)
            drafts.append(token if i < self._num_right else (token + 1) % VOCAB_SIZE)
            prefix_hash = extend(prefix_hash, token)
        return drafts

    def spoil_step(self) -> bool:
        return False


def shares(engine: SimulatedEngine, request_id: str) -> list[ScheduledRequest]:
    return [item for plan in engine.executor.plans for item in plan.scheduled if item.request_id == request_id]


def num_drafts(engine: SimulatedEngine, request_id: str) -> list[int]:
    """Of each step that samples."""
    return [len(item.draft_token_ids) for item in shares(engine, request_id) if item.num_samples]


def expected(tokens: Sequence[int], max_model_len: int = 64, **sampling: object) -> list[int]:
    return reference([*tokens], SamplingParams(**sampling), max_model_len)  # type: ignore[arg-type]


def test_right_drafts_bring_several_tokens_a_step_and_are_cut_to_what_max_tokens_leaves() -> None:
    engine = SimulatedEngine(drafts=Right(3))
    engine.add("a", prompt(5), max_tokens=10, ignore_eos=True)
    engine.run()
    assert engine.tokens["a"] == expected(prompt(5), max_tokens=10, ignore_eos=True)
    assert num_drafts(engine, "a") == [0, 3, 3, 0]


def test_drafts_are_cut_to_what_the_context_leaves() -> None:
    engine = SimulatedEngine(drafts=Right(5), max_model_len=16)
    engine.add("a", prompt(10), max_tokens=None, ignore_eos=True)
    engine.run()
    assert num_drafts(engine, "a") == [0, 4]
    assert shares(engine, "a")[-1].end == 15, "the last token of a context is sampled, and not computed"


@pytest.mark.parametrize("num_right", [0, 1, 2])
def test_wrong_drafts_cost_nothing_but_their_rows(num_right: int) -> None:
    engine = SimulatedEngine(drafts=Right(3, num_right))
    engine.add("a", prompt(5), max_tokens=13, ignore_eos=True)
    engine.run()
    assert engine.tokens["a"] == expected(prompt(5), max_tokens=13, ignore_eos=True)
    assert len(shares(engine, "a")) == 1 + 12 // (num_right + 1)


def test_an_end_of_sequence_among_the_accepted_tokens_ends_a_request_there() -> None:
    tokens = next(tokens for seed in range(500) if EOS in expected(tokens := prompt(5, seed), max_tokens=4)[1:3])
    engine = SimulatedEngine(drafts=Right(7))
    engine.add("stops", tokens, max_tokens=30)
    engine.add("goes on", tokens, max_tokens=30, ignore_eos=True)
    engine.run()
    assert engine.tokens["stops"] == expected(tokens, max_tokens=30)
    assert engine.finish_reasons == {"stops": "stop", "goes on": "length"}


def test_what_ends_a_request_in_the_middle_of_a_block_leaves_it_unregistered() -> None:
    """Blocks of 4: of the tokens accepted, the seventh is the stop, and the eighth would have filled a block."""
    free = expected(prompt(5), max_tokens=9, ignore_eos=True)
    assert free[1] not in free[:1]
    engine = SimulatedEngine(drafts=Right(7))
    engine.add("a", prompt(5), max_tokens=30, ignore_eos=True, stop_token_ids=(free[1],))
    engine.run()
    engine.add("b", [*prompt(5), *free], max_tokens=1)
    engine.run()
    assert engine.cached_tokens["b"] == 4


def test_a_stop_token_among_the_accepted_tokens_is_named_and_what_follows_is_dropped() -> None:
    free = expected(prompt(5), max_tokens=4, ignore_eos=True)
    assert free[2] not in free[:2]
    engine = SimulatedEngine(drafts=Right(7))
    engine.add("a", prompt(5), max_tokens=30, ignore_eos=True, stop_token_ids=(free[2],))
    engine.step()
    (delta,) = engine.step().deltas
    assert (delta.token_ids, delta.finish_reason, delta.stop_reason) == (free[1:3], "stop", free[2])
    assert not engine.core.has_work


def test_logprobs_are_cut_with_the_tokens_they_belong_to() -> None:
    free = expected(prompt(5), max_tokens=4, ignore_eos=True)
    engine = SimulatedEngine(drafts=Right(3))
    engine.add("a", prompt(5), max_tokens=30, ignore_eos=True, stop_token_ids=(free[2],))
    engine.step()
    step = engine.core.scheduler.schedule()
    result = engine.executor.launch(step.plan)()
    tokens = result.sampled_token_ids["a"]
    assert len(tokens) == 4
    result.logprobs["a"] = [TokenLogprobs(token_id=token, logprob=-1.0) for token in tokens]
    (delta,) = engine.core.scheduler.update(step, result)
    assert delta.logprobs is not None
    assert [entry.token_id for entry in delta.logprobs] == delta.token_ids == free[1:3]


def test_a_block_with_a_rejected_draft_is_not_found_by_others_before_it_is_computed_again() -> None:
    """Blocks of 4: the wrong drafts fill the second and third block of a text that is right up to its sixth token."""
    engine = SimulatedEngine(drafts=Right(7, 0), max_num_batched_tokens=64)
    engine.add("a", prompt(5), max_tokens=20, ignore_eos=True)
    text = prompt(5) + expected(prompt(5), max_tokens=20, ignore_eos=True)
    engine.step()
    engine.step()
    assert shares(engine, "a")[-1].end == 13
    engine.add("b", text[:16], max_tokens=4, ignore_eos=True)
    engine.add("c", [*text[:6], *shares(engine, "a")[-1].draft_token_ids, 1, 2], max_tokens=4, ignore_eos=True)
    engine.step()
    assert engine.cached_tokens["b"] == engine.cached_tokens["c"] == 4
    engine.run()
    assert engine.tokens["b"] == expected(text[:16], max_tokens=4, ignore_eos=True)
    engine.add("d", text, max_tokens=1)
    engine.run()
    assert engine.cached_tokens["d"] == 24, "what was right in the end is found"


def test_a_block_whose_last_token_took_a_drafts_place_is_not_found_before_that_is_computed() -> None:
    """Blocks of 4: the eighth token is sampled, and what is cached in its place is a wrong draft's."""
    engine = SimulatedEngine(drafts=Right(3, 0), max_num_batched_tokens=64)
    engine.add("a", prompt(6), max_tokens=20, ignore_eos=True)
    engine.step()
    engine.step()
    text = prompt(6) + engine.tokens["a"]
    assert len(text) == 8
    engine.core.abort_requests(["a"])
    engine.add("b", [*text, 1], max_tokens=2, ignore_eos=True)
    engine.run()
    assert engine.cached_tokens["b"] == 4
    assert engine.tokens["b"] == expected([*text, 1], max_tokens=2, ignore_eos=True)


def test_blocks_of_accepted_drafts_are_found_by_others() -> None:
    engine = SimulatedEngine(drafts=Right(7), max_num_batched_tokens=64)
    engine.add("a", prompt(5), max_tokens=12, ignore_eos=True)
    engine.run()
    text = prompt(5) + engine.tokens["a"]
    engine.add("b", [*text, 1], max_tokens=2, ignore_eos=True)
    engine.run()
    assert engine.cached_tokens["b"] == 16


@pytest.mark.parametrize("drafts", [None, Right(40, 0)], ids=["plain", "drafts"])
def test_no_request_is_preempted_for_anothers_drafts(drafts: Drafts | None) -> None:
    engine = SimulatedEngine(num_kv_blocks=16, max_num_seqs=2, max_num_batched_tokens=64, drafts=drafts)
    engine.add("greedy", prompt(9, 1), max_tokens=50, ignore_eos=True)
    engine.add("short", prompt(8, 2), max_tokens=9, ignore_eos=True)
    while engine.core.has_work:
        assert engine.step().stats.num_preemptions == 0
    assert drafts is None or max(num_drafts(engine, "greedy")) > 30


def test_drafts_leave_every_request_its_token_and_prompts_half_of_the_rest() -> None:
    engine = SimulatedEngine(drafts=Right(7), max_num_seqs=4, max_num_batched_tokens=16)
    for name in "ab":
        engine.add(name, prompt(3, ord(name)), max_tokens=40, ignore_eos=True)
    engine.step()
    engine.add("long", prompt(40, 3), max_tokens=4, ignore_eos=True)
    engine.step()
    tokens = {item.request_id: item.num_tokens for item in engine.executor.plans[-1].scheduled}
    assert tokens["a"] + tokens["b"] == 2 + (16 - 3) // 2
    assert tokens["long"] == 16 - tokens["a"] - tokens["b"]
    engine.run()
    assert max(plan.num_tokens for plan in engine.executor.plans) == 16


@pytest.mark.parametrize(
    "fields", [{"presence_penalty": 0.5}, {"bad_words_token_ids": ((3,),)}, {"grammar": Grammar("regex", "a+")}]
)
def test_a_request_that_looks_back_at_its_tokens_tries_no_drafts(fields: dict[str, object]) -> None:
    engine = SimulatedEngine(drafts=Right(3))
    engine.add("a", prompt(3), max_tokens=6, ignore_eos=True, **fields)
    engine.run()
    assert num_drafts(engine, "a") == [0] * 6


def test_no_step_is_planned_ahead_of_drafts() -> None:
    engine = SimulatedEngine(drafts=Right(3), runs_ahead=True)
    engine.add("a", prompt(3), max_tokens=20, ignore_eos=True)
    engine.run()
    assert num_drafts(engine, "a") == [0, 0, 3, 3, 3, 3, 1]
    assert engine.tokens["a"] == expected(prompt(3), max_tokens=20, ignore_eos=True)


def test_a_step_that_its_drafts_spoiled_is_planned_again_without_them() -> None:
    drafts = Right(3)
    engine = SimulatedEngine(drafts=drafts)
    engine.add("a", prompt(3), max_tokens=6, ignore_eos=True)
    engine.step()
    drafts.spoil_step = lambda: True  # type: ignore[method-assign]
    assert engine.step().deltas == []
    engine.step()
    assert num_drafts(engine, "a") == [0, 3, 0]
    assert engine.tokens["a"] == expected(prompt(3), max_tokens=2, ignore_eos=True)


def test_after_a_step_that_failed_drafts_are_forgotten_and_the_request_goes_on() -> None:
    engine = SimulatedEngine(drafts=Right(3))
    for seed, name in enumerate("ab"):
        engine.add(name, prompt(3, seed), max_tokens=12, ignore_eos=True)
    engine.step()
    engine.executor.fault = fails_once(RuntimeError("a hiccup"))
    engine.run()
    for seed, name in enumerate("ab"):
        assert engine.tokens[name] == expected(prompt(3, seed), max_tokens=12, ignore_eos=True)


def test_a_step_that_does_not_fit_into_memory_with_drafts_is_run_with_fewer() -> None:
    engine = SimulatedEngine(drafts=Right(30), max_num_batched_tokens=64, max_model_len=120)

    def fault(plan: StepPlan) -> None:
        if plan.num_tokens > 20:
            raise MemoryError

    engine.executor.fault = fault
    engine.add("a", prompt(3), max_tokens=100, ignore_eos=True)
    engine.run()
    assert engine.finish_reasons == {"a": "length"}
    assert max(num_drafts(engine, "a")[3:]) == 16


def test_aborted_with_drafts_in_flight_leaves_nothing_behind() -> None:
    engine = SimulatedEngine(drafts=Right(3))
    engine.add("a", prompt(3), max_tokens=12, ignore_eos=True)
    engine.step()
    engine.executor.fault = lambda plan: engine.core.abort_requests(["a"])
    assert engine.step().deltas == []
    assert not engine.core.has_work
    assert engine.core.stats().num_kv_blocks_used == 0


def test_tokens_of_a_decoding_request_are_no_prompt_tokens() -> None:
    engine = SimulatedEngine(drafts=Right(3))
    engine.add("a", prompt(5), max_tokens=30, ignore_eos=True)
    engine.step()
    stats = engine.step().stats
    assert (stats.num_prefill_tokens, stats.num_decode_tokens, stats.num_sampled_tokens) == (0, 4, 4)


def test_drafts_of_a_request_that_is_gone_are_dropped() -> None:
    engine = SimulatedEngine()
    engine.add("a", prompt(5), max_tokens=30, ignore_eos=True)
    step = engine.core.scheduler.schedule()
    tokens = engine.executor.launch(step.plan)().sampled_token_ids
    engine.core.abort_requests(["a"])
    assert (
        engine.core.scheduler.update(
            step, StepResult(sampled_token_ids=tokens, drafts={"a": Proposal([1, 2], "long match")})
        )
        == []
    )


def fails_once(error: Exception) -> Callable[[StepPlan], None]:
    errors = [error]

    def fault(plan: StepPlan) -> None:
        if errors:
            raise errors.pop()

    return fault


class InTurn(Right):
    """Proposes many wrong tokens for one of four requests, and in the next step for the next one."""

    num_calls = 0

    def propose(self, prefix_hash: int) -> list[int]:
        step, index = divmod(self.num_calls, 4)
        self.num_calls += 1
        return super().propose(prefix_hash) if step % 4 == index else []


def test_blocks_of_windows_that_rejected_drafts_have_left_never_add_up() -> None:
    """Each request keeps them until it has come so far: of all that run, there may be more than a step has tokens."""
    engine = SimulatedEngine(
        drafts=InTurn(count=40, num_right=0),
        windows=(1,),
        block_size=1,
        max_num_batched_tokens=34,
        num_kv_blocks=1000,
        max_model_len=200,
    )
    for seed in range(4):
        engine.add(f"r{seed}", prompt(8, seed), max_tokens=60, ignore_eos=True)
    engine.run()
    for seed in range(4):
        sampling = SamplingParams(max_tokens=60, ignore_eos=True)
        assert engine.tokens[f"r{seed}"] == reference(prompt(8, seed), sampling, 200)
        assert max(num_drafts(engine, f"r{seed}")) > 0
