"""Where requests of a model with states begin with snapshots and leave some: plans, and tokens that are computed."""

from typing import Any

import pytest

from orcinus.engine.messages import ScheduledRequest, StepPlan
from orcinus.engine.sampling_params import Grammar, SamplingParams
from tests.unit.engine.scheduler.simulator import EOS, Always, SimulatedEngine, reference
from tests.unit.engine.scheduler.test_drafts import Right

BLOCK = 4
ANY = Grammar("regex", ".*")


def engine_with_states(**changes: Any) -> SimulatedEngine:
    sizes: dict[str, Any] = {"state_bytes": 64, "num_state_snapshots": 32, "max_model_len": 256, "num_kv_blocks": 256}
    return SimulatedEngine(**sizes | {"max_num_batched_tokens": 256} | changes)


def tokens(count: int, seed: int = 0) -> list[int]:
    """Return a prompt without ends."""
    return [(seed * 17 + i * 7) % 49 + 1 for i in range(count)]


def chunks(engine: SimulatedEngine, request_id: str) -> list[ScheduledRequest]:
    return [item for plan in engine.executor.plans for item in plan.scheduled if item.request_id == request_id]


def num_computed(engine: SimulatedEngine, request_id: str) -> int:
    return sum(item.num_tokens for item in chunks(engine, request_id))


def saved_at(engine: SimulatedEngine, request_id: str) -> list[int]:
    return [item.end for item in chunks(engine, request_id) if item.save_state >= 0]


def serve(engine: SimulatedEngine, request_id: str, prompt: list[int], **fields: Any) -> list[int]:
    """Run a request, alone, and return its output."""
    engine.add(request_id, prompt, **{"max_tokens": 1, "ignore_eos": True} | fields)
    engine.run()
    return engine.tokens[request_id]


@pytest.mark.parametrize("length", [31, 32, 33])
def test_the_same_prompt_again_computes_at_most_one_block(length: int) -> None:
    engine = engine_with_states()
    first = serve(engine, "first", tokens(length))
    assert serve(engine, "second", tokens(length)) == first
    assert engine.cached_tokens["second"] == (length - 1) // BLOCK * BLOCK
    assert 1 <= num_computed(engine, "second") <= BLOCK
    (chunk,) = chunks(engine, "second")
    assert chunk.load_state >= 0


def test_a_prompt_is_cut_at_the_ends_of_its_first_message_and_of_the_last_two() -> None:
    engine = engine_with_states()
    prompt = tokens(40)
    for end in (3, 9, 14, 22, 30):
        prompt[end - 1] = EOS
    serve(engine, "chat", prompt, max_tokens=0)
    # An end has a snapshot after the last full block before it, and 3 tokens are less than a block.
    assert saved_at(engine, "chat") == [8, 20, 28, 36]
    assert [item.num_tokens for item in chunks(engine, "chat")] == [8, 12, 8, 8, 4]


def test_ends_of_a_request_of_its_own_count_as_well() -> None:
    engine = engine_with_states()
    serve(engine, "chat", [*tokens(9), 49, *tokens(10, 3)], max_tokens=0, more_eos_token_ids=(49,))
    assert 8 in saved_at(engine, "chat")


def test_what_a_cut_leaves_of_a_step_goes_to_others() -> None:
    engine = engine_with_states(max_num_batched_tokens=32)
    prompt = tokens(30)
    prompt[9] = EOS
    engine.add("chat", prompt, max_tokens=1)
    engine.add("other", tokens(20, 5), max_tokens=1)
    engine.step()
    assert [(item.request_id, item.num_tokens) for item in engine.executor.plans[0].scheduled] == [
        ("chat", 8),
        ("other", 16),
    ]


def test_the_first_request_behind_a_shared_beginning_leaves_the_snapshot_that_the_next_one_finds() -> None:
    engine = engine_with_states()
    shared = tokens(102)
    serve(engine, "first", shared + tokens(20, 1))
    serve(engine, "second", shared + tokens(20, 2))
    serve(engine, "third", shared + tokens(20, 3))
    assert [engine.cached_tokens[name] for name in ("first", "second", "third")] == [0, 0, 100]
    assert 100 in saved_at(engine, "second")
    assert num_computed(engine, "third") == 22


def test_requests_that_arrive_together_compute_a_shared_beginning_twice_and_not_more_often() -> None:
    """Once for its blocks, and once by the first to leave the way of the others, which leaves a snapshot there."""
    engine = engine_with_states(max_num_seqs=8, max_num_batched_tokens=32)
    shared = tokens(102)
    for number in range(6):
        engine.add(f"{number}", shared + tokens(20, number + 1), max_tokens=1)
    engine.run()
    assert [engine.cached_tokens[f"{number}"] for number in range(6)] == [0, 0, 100, 100, 100, 100]


def test_the_same_prompt_many_times_at_once_is_computed_once() -> None:
    engine = engine_with_states(max_num_seqs=8, max_num_batched_tokens=32)
    for number in range(6):
        engine.add(f"{number}", tokens(102), max_tokens=1)
    engine.run()
    assert [engine.cached_tokens[f"{number}"] for number in range(6)] == [0, *[100] * 5]


def test_who_goes_first_waits_for_the_snapshot_that_a_request_behind_it_is_on_the_way_to() -> None:
    engine = engine_with_states(max_num_batched_tokens=16)
    shared = [*tokens(99), EOS]
    engine.add("leader", shared + tokens(20, 1), max_tokens=1)
    engine.step()
    engine.add("follower", shared + tokens(8, 2), max_tokens=1, priority=-1)
    engine.run()
    assert engine.cached_tokens["follower"] == 100
    assert num_computed(engine, "follower") == 8


def test_who_waits_goes_on_from_a_later_snapshot_than_it_had_when_it_got_its_slot() -> None:
    engine = engine_with_states(max_num_batched_tokens=16)
    system = [*tokens(11), EOS]
    serve(engine, "first", system + tokens(9, 5))
    shared = [*system, *tokens(60, 1), EOS]
    for number in range(2):
        engine.add(f"{number}", shared + tokens(9, 2 + number), max_tokens=1)
    engine.run()
    assert (engine.cached_tokens["0"], engine.cached_tokens["1"]) == (12, 72)


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_conversation_computes_each_token_once_but_for_a_block_a_turn(runs_ahead: bool) -> None:
    engine = engine_with_states(runs_ahead=runs_ahead)
    conversation, num_all = [*tokens(20), EOS], 0
    for turn in range(10):
        conversation += [*tokens(5, turn), EOS]
        num_known = len(conversation)
        conversation += serve(engine, f"{turn}", conversation, max_tokens=9)
        num_all += num_computed(engine, f"{turn}")
        assert turn == 0 or num_known - engine.cached_tokens[f"{turn}"] <= 6 + 1 + BLOCK
    assert num_all <= len(conversation) + 10 * BLOCK
    assert engine.core._states is not None
    assert engine.core._states.num_snapshots < 32, "each block of an answer takes the place of the one before"


@pytest.mark.parametrize("num_forced", [3, 6, 11])
def test_a_conversation_finds_what_was_computed_of_forced_tokens(num_forced: int) -> None:
    """Chunks of tokens that were not sampled end where blocks do, so that there are snapshots to go on from."""
    engine = engine_with_states(forcing=Always(num_forced))
    num_tokens = 2 + 2 * (1 + num_forced)  # the last one is sampled, as that of a text is
    conversation: list[int] = tokens(20)
    for turn in range(8):
        conversation += tokens(5, turn)
        num_known = len(conversation)
        conversation += serve(engine, f"{turn}", conversation, max_tokens=num_tokens - 1, grammar=ANY)
        assert turn == 0 or num_known - engine.cached_tokens[f"{turn}"] <= 5 + 1 + BLOCK


def test_an_answer_that_comes_back_otherwise_goes_on_behind_the_last_message() -> None:
    """Templates leave out what a model has thought."""
    engine = engine_with_states()
    prompt = [*tokens(20), EOS, *tokens(14, 1), EOS, 7]
    serve(engine, "first", prompt, max_tokens=12)
    serve(engine, "second", [*prompt[:-1], 9, *tokens(10, 2)])
    assert engine.cached_tokens["second"] == 36


def test_after_a_step_that_failed_requests_go_on_from_their_last_full_blocks() -> None:
    engine = engine_with_states()
    for number in range(2):
        engine.add(f"{number}", tokens(9, number), max_tokens=60, ignore_eos=True)
    for _ in range(42):
        engine.step()

    def fail(plan: StepPlan) -> None:
        engine.executor.fault = lambda plan: None
        raise RuntimeError

    engine.executor.fault = fail
    engine.run()
    for number in range(2):
        (resumed,) = [item for item in chunks(engine, f"{number}") if item.load_state >= 0]
        assert resumed.num_computed_tokens == 48
    assert engine.finish_reasons == {"0": "length", "1": "length"}


def test_who_loses_its_last_blocks_to_others_goes_on_a_few_blocks_before_them() -> None:
    engine = engine_with_states(num_kv_blocks=45, max_model_len=120, max_num_seqs=2)
    for number in range(2):
        engine.add(f"{number}", tokens(9, number), max_tokens=100, ignore_eos=True)
    engine.run()
    resumed = [item for item in chunks(engine, "1") if item.load_state >= 0]
    assert len(resumed) > 0
    assert all(item.num_computed_tokens >= 32 for item in resumed)


def test_a_snapshot_is_found_only_after_its_step() -> None:
    engine = engine_with_states(runs_ahead=True)
    scheduler = engine.core.scheduler
    engine.add("first", tokens(18), max_tokens=1)
    before = scheduler.schedule()
    assert before.plan.scheduled[0].save_state >= 0
    engine.add("second", tokens(18), max_tokens=1)
    assert [item.request_id for item in scheduler.schedule().plan.scheduled] == ["first"], "the second one waits"
    scheduler.check_integrity()
    assert engine.core._states is not None
    assert engine.core._states.num_snapshots == 0
    scheduler.update(before, engine.executor.launch(before.plan)())
    assert engine.core._states.num_snapshots == 1


def test_a_step_that_failed_leaves_no_snapshot() -> None:
    engine = engine_with_states()

    def fail(plan: StepPlan) -> None:
        raise RuntimeError

    engine.executor.fault = fail
    serve(engine, "culprit", tokens(18))
    assert engine.finish_reasons["culprit"] == "error"
    assert engine.core._states is not None
    assert engine.core._states.num_snapshots == 0
    engine.executor.fault = lambda plan: None
    assert serve(engine, "again", tokens(18)) != []
    assert engine.cached_tokens["again"] == 0


def test_who_is_aborted_while_a_step_runs_gives_its_row_back() -> None:
    engine = engine_with_states(runs_ahead=True, num_state_snapshots=1)
    step = engine.core.scheduler
    engine.add("gone", tokens(18), max_tokens=1)
    planned = step.schedule()
    engine.core.abort_requests(["gone"])
    step.check_integrity()
    assert step.update(planned, engine.executor.launch(planned.plan)()) == []
    step.check_integrity()
    assert engine.core._states is not None
    assert engine.core._states.num_snapshots == 0


def test_a_snapshot_goes_with_the_blocks_before_it() -> None:
    engine = engine_with_states(num_kv_blocks=64, max_model_len=200)
    serve(engine, "first", tokens(41))
    serve(engine, "large", tokens(199, 3), max_tokens=0)
    assert engine.core._states is not None
    serve(engine, "filler", tokens(150, 4), max_tokens=0)
    found = engine.core._states.hashes
    assert found <= engine.core._blocks._full.hashes
    serve(engine, "again", tokens(41))
    assert engine.cached_tokens["again"] in (0, 40)


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 0}, {"pooling": "mean", "max_tokens": 0}])
def test_who_needs_every_token_of_its_prompt_begins_at_the_start(fields: dict[str, Any]) -> None:
    engine = engine_with_states()
    serve(engine, "first", tokens(41))
    serve(engine, "second", tokens(41), **fields)
    assert engine.cached_tokens["second"] == 0


def test_another_salt_or_adapter_shares_no_snapshot() -> None:
    engine = engine_with_states()
    serve(engine, "a", tokens(41), cache_salt="one")
    serve(engine, "b", tokens(41), cache_salt="two")
    serve(engine, "c", tokens(41), adapter="french")
    serve(engine, "d", tokens(41), cache_salt="one")
    assert engine.cached_tokens == {"a": 0, "b": 0, "c": 0, "d": 40}


def test_without_snapshots_no_prefix_is_reused() -> None:
    engine = engine_with_states(num_state_snapshots=0)
    serve(engine, "first", tokens(41))
    serve(engine, "second", tokens(41))
    assert engine.cached_tokens["second"] == 0


@pytest.mark.parametrize("num_right", [0, 1, 2])
def test_accepted_drafts_are_computed_again_unless_all_are(num_right: int) -> None:
    engine = engine_with_states(drafts=Right(2, num_right), block_size=16)
    serve(engine, "first", tokens(35), max_tokens=10, ignore_eos=True)
    with_drafts = [item for item in chunks(engine, "first") if item.draft_token_ids]
    expected = {
        0: [(35, 36, 38), (36, 37, 39), (37, 38, 40)],
        1: [(35, 36, 38), (36, 38, 40), (38, 40, 42)],
        2: [(35, 36, 38), (38, 39, 41), (41, 42, 44)],
    }
    places = [(item.num_computed_tokens, item.known_end, item.end) for item in with_drafts]
    assert places[:3] == expected[num_right]


def test_snapshots_of_an_answer_are_made_at_the_same_places_with_drafts() -> None:
    plain, drafted = engine_with_states(), engine_with_states(drafts=Right(3))
    for engine in (plain, drafted):
        serve(engine, "first", tokens(41), max_tokens=40, ignore_eos=True)
        saved = [item.known_end for item in chunks(engine, "first") if item.save_state >= 0]
        assert saved == [40, *range(44, 81, 4)]
        assert sum(len(item.draft_token_ids) for item in chunks(engine, "first")) > (0 if engine is drafted else -1)


def test_a_request_whose_drafts_spoiled_a_step_begins_anew() -> None:
    class Spoiling(Right):
        def spoil_step(self) -> bool:
            self.num_spoiled_steps += 1
            return self.num_spoiled_steps == 1

    engine = engine_with_states(drafts=Spoiling(2), block_size=16)
    serve(engine, "first", tokens(41), max_tokens=10, ignore_eos=True)
    assert engine.tokens["first"] == reference(tokens(41), SamplingParams(max_tokens=10, ignore_eos=True), 256)
    assert sum(item.num_computed_tokens <= 32 < item.end for item in chunks(engine, "first")) == 2


def test_an_answer_that_is_quick_to_compute_again_does_not_push_out_a_long_prompt() -> None:
    engine = engine_with_states(num_state_snapshots=2)
    serve(engine, "long", tokens(150, 1))
    serve(engine, "longer", tokens(200, 2))
    serve(engine, "answered", tokens(200, 2), max_tokens=50)
    assert engine.cached_tokens["answered"] == 196
    serve(engine, "again", tokens(150, 1))
    assert engine.cached_tokens["again"] == 148


def test_loads_saves_and_evictions_are_counted() -> None:
    engine = engine_with_states(num_state_snapshots=2)
    loads = saves = evictions = 0
    for number in range(6):
        engine.add(f"{number}", tokens(30, number % 5), max_tokens=1)
        while engine.core.has_work:
            stats = engine.step().stats
            assert stats.num_snapshots == 2
            loads += stats.num_snapshot_loads
            saves += stats.num_snapshot_saves
            evictions += stats.num_snapshot_evictions
    assert (loads, saves) == (engine.executor.num_loads, engine.executor.num_saves)
    assert evictions > 0
    assert engine.core.stats().num_snapshots_used == 2
