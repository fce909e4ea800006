from collections.abc import Callable

import pytest

from orcinus.engine.messages import StepPlan, StepResult
from orcinus.engine.sampling_params import Grammar, SamplingParams
from tests.unit.engine.scheduler.simulator import EOS, SimulatedEngine, reference


def prompt(length: int, seed: int = 1) -> list[int]:
    return [1 + (seed * 31 + index * 7) % 49 for index in range(length)]


def fail_where(engine: SimulatedEngine, is_bad: Callable[[StepPlan], bool], error: Exception) -> None:
    def fault(plan: StepPlan) -> None:
        if is_bad(plan):
            raise error

    engine.executor.fault = fault


def samples(plan: StepPlan, request_id: str, position: int) -> bool:
    """Whether the step samples this request's token of that position."""
    return any(item.request_id == request_id and item.num_samples and item.end == position for item in plan.scheduled)


def stepped(engine: SimulatedEngine) -> StepPlan:
    engine.step()
    return engine.executor.plans[-1]


def tokens_by_request(plan: StepPlan) -> dict[str, int]:
    return {scheduled.request_id: scheduled.num_tokens for scheduled in plan.scheduled}


def test_a_request_alone_gives_its_reference_tokens() -> None:
    engine = SimulatedEngine()
    engine.add("a", prompt(10), max_tokens=20, ignore_eos=True)
    engine.run()
    assert engine.tokens["a"] == reference(prompt(10), _sampling(max_tokens=20, ignore_eos=True), 64)
    assert engine.finish_reasons["a"] == "length"


def test_a_finished_requests_slot_is_refilled_in_the_very_next_step() -> None:
    engine = SimulatedEngine(max_num_seqs=2)
    engine.add("short", prompt(3), max_tokens=2, ignore_eos=True)
    engine.add("long", prompt(3, 2), max_tokens=30, ignore_eos=True)
    engine.add("next", prompt(3, 3), max_tokens=5, ignore_eos=True)
    while "short" not in engine.finish_reasons:
        outputs = engine.step()
        assert "next" not in tokens_by_request(engine.executor.plans[-1])
    assert outputs.stats.num_running == 1
    engine.step()
    assert tokens_by_request(engine.executor.plans[-1]) == {"long": 1, "next": 3}


def test_an_aborted_requests_slot_is_refilled_in_the_very_next_step() -> None:
    engine = SimulatedEngine(max_num_seqs=1)
    engine.add("a", prompt(3), max_tokens=30, ignore_eos=True)
    engine.add("b", prompt(3, 2), max_tokens=3, ignore_eos=True)
    engine.step()
    engine.core.abort_requests(["a", "unknown"])
    engine.step()
    assert tokens_by_request(engine.executor.plans[-1]) == {"b": 3}
    assert engine.executor.plans[-1].released == ["a"]


def test_a_step_mixes_decode_tokens_and_chunks_of_prompts_under_the_budget() -> None:
    engine = SimulatedEngine(max_num_batched_tokens=8, enable_prefix_caching=False)
    engine.add("a", prompt(4), max_tokens=20, ignore_eos=True)
    engine.step()
    engine.add("b", prompt(10, 2), max_tokens=20, ignore_eos=True)
    engine.add("c", prompt(10, 3), max_tokens=20, ignore_eos=True)
    engine.step()
    assert tokens_by_request(engine.executor.plans[-1]) == {"a": 1, "b": 7}
    engine.step()
    assert tokens_by_request(engine.executor.plans[-1]) == {"a": 1, "b": 3, "c": 4}
    engine.step()
    assert tokens_by_request(engine.executor.plans[-1]) == {"a": 1, "b": 1, "c": 6}
    engine.run()


def test_a_slot_is_taken_even_where_the_budget_has_no_token_left_for_it() -> None:
    engine = SimulatedEngine(max_num_batched_tokens=4, max_num_seqs=3, max_model_len=32)
    for name in "abc":
        engine.add(name, prompt(12, ord(name)), max_tokens=4)
    assert engine.step().stats.num_running == 3


def test_end_of_sequence_stops_a_request_unless_told_otherwise() -> None:
    stopping = next(seed for seed in range(500) if EOS in reference(prompt(5, seed), _sampling(max_tokens=10), 64))
    engine = SimulatedEngine()
    engine.add("stops", prompt(5, stopping), max_tokens=30)
    engine.add("goes on", prompt(5, stopping), max_tokens=30, ignore_eos=True)
    engine.run()
    assert engine.finish_reasons == {"stops": "stop", "goes on": "length"}
    assert engine.tokens["stops"][-1] == EOS
    assert len(engine.tokens["goes on"]) == 30


def test_a_stop_token_ends_a_request_and_is_named_but_not_before_min_tokens() -> None:
    free = reference(prompt(5), _sampling(max_tokens=10, ignore_eos=True), 64)
    engine = SimulatedEngine()
    engine.add("a", prompt(5), max_tokens=10, ignore_eos=True, stop_token_ids=(free[2],))
    engine.add("b", prompt(5), max_tokens=10, ignore_eos=True, stop_token_ids=(free[2],), min_tokens=4)
    reasons = []
    while engine.core.has_work:
        reasons += [(d.request_id, d.stop_reason) for d in engine.step().deltas if d.finish_reason == "stop"]
    assert engine.tokens["a"] == free[: free.index(free[2]) + 1]
    assert len(engine.tokens["b"]) >= 4
    assert ("a", free[2]) in reasons


def test_the_context_length_ends_a_request() -> None:
    engine = SimulatedEngine(max_model_len=16)
    engine.add("a", prompt(10), max_tokens=None, ignore_eos=True)
    engine.run()
    assert len(engine.tokens["a"]) == 6
    assert engine.finish_reasons["a"] == "length"


def test_max_tokens_zero_runs_the_prompt_and_samples_nothing() -> None:
    engine = SimulatedEngine(max_num_batched_tokens=4)
    engine.add("a", prompt(10), max_tokens=0)
    engine.run()
    assert engine.tokens["a"] == []
    assert engine.finish_reasons["a"] == "length"
    assert [plan.num_tokens for plan in engine.executor.plans] == [4, 4, 2]


def test_lower_priority_numbers_run_first_and_equal_ones_in_order_of_arrival() -> None:
    engine = SimulatedEngine(max_num_seqs=1)
    for name, priority in [("running", 0), ("late", 5), ("first", -1), ("second", -1), ("normal", 0)]:
        engine.add(name, prompt(3, len(name)), max_tokens=2, ignore_eos=True, priority=priority)
        if name == "running":
            engine.step()
    engine.run()
    assert list(engine.finish_reasons) == ["running", "first", "second", "normal", "late"]


def test_low_priority_does_not_starve_under_a_stream_of_high_priority() -> None:
    engine = SimulatedEngine(max_num_seqs=1)
    engine.add("patient", prompt(3), max_tokens=2, ignore_eos=True, priority=10)
    for number in range(100):
        engine.add(f"urgent{number}", prompt(3, number), max_tokens=2, ignore_eos=True, priority=0)
        engine.clock.now += 1
        engine.step()
        engine.step()
        if "patient" in engine.finish_reasons:
            break
    assert 60 < engine.clock.now < 64


def test_when_blocks_run_out_the_newest_is_preempted_and_resumes_with_its_generated_tokens() -> None:
    engine = SimulatedEngine(num_kv_blocks=16, max_num_seqs=4, enable_prefix_caching=False)
    names = ["a", "b", "c", "d"]
    for seed, name in enumerate(names):
        engine.add(name, prompt(8, seed), max_tokens=40, ignore_eos=True)
    num_preemptions = 0
    while engine.core.has_work:
        oldest = next(name for name in names if name not in engine.finish_reasons)
        num_preemptions += engine.step().stats.num_preemptions
        assert oldest in tokens_by_request(engine.executor.plans[-1]), "the oldest is never preempted"
    assert num_preemptions > 0
    assert list(engine.finish_reasons) == names, "oldest first in, newest out first"
    for seed, name in enumerate(names):
        assert engine.tokens[name] == reference(prompt(8, seed), _sampling(max_tokens=40, ignore_eos=True), 64)


def test_the_time_without_a_slot_is_reported_once_with_what_comes_after_it() -> None:
    engine = SimulatedEngine(num_kv_blocks=16, max_num_seqs=4, enable_prefix_caching=False)
    for seed, name in enumerate("abcd"):
        engine.add(name, prompt(8, seed), max_tokens=40, ignore_eos=True)
    num_preemptions, last_ended_at = 0, 0.0
    pauses: list[tuple[float, float]] = []
    while engine.core.has_work:
        outputs = engine.step()
        num_preemptions += outputs.stats.num_preemptions
        assert outputs.ended_at >= last_ended_at
        last_ended_at = outputs.ended_at
        for delta in outputs.deltas:
            assert all(start < end <= outputs.ended_at for start, end in delta.pauses)
            pauses += delta.pauses
    assert len(pauses) == num_preemptions > 0


def test_a_request_gets_its_slot_only_while_the_running_ones_keep_a_block_to_grow_into() -> None:
    engine = SimulatedEngine(num_kv_blocks=16, enable_prefix_caching=False)
    engine.add("a", prompt(32, 1), max_tokens=30, ignore_eos=True)
    engine.step()
    assert engine.core.stats().num_kv_blocks_used == 8
    engine.add("too large", prompt(32, 2), max_tokens=4, ignore_eos=True)
    assert engine.step().stats.num_running == 1
    engine.core.abort_requests(["too large"])
    engine.add("fits", prompt(28, 3), max_tokens=4, ignore_eos=True)
    assert engine.step().stats.num_running == 2


def test_a_lower_priority_request_is_preempted_before_an_older_one_of_higher_priority() -> None:
    engine = SimulatedEngine(num_kv_blocks=16, max_num_seqs=2, enable_prefix_caching=False)
    engine.add("unimportant", prompt(8, 1), max_tokens=50, ignore_eos=True, priority=5)
    engine.step()
    engine.add("important", prompt(8, 2), max_tokens=50, ignore_eos=True, priority=0)
    engine.run()
    assert list(engine.finish_reasons) == ["important", "unimportant"]


def test_between_clients_the_one_that_had_most_makes_room_whatever_its_priority() -> None:
    engine = SimulatedEngine(num_kv_blocks=16, max_num_seqs=2, enable_prefix_caching=False)
    fields = {"max_tokens": 48, "ignore_eos": True}
    engine.add("pushy", prompt(12, 1), **fields, client="pushy", priority=-100)
    engine.add("calm", prompt(8, 2), **fields, client="calm")
    preempted = []
    while engine.core.has_work:
        if engine.step().stats.num_preemptions:
            preempted.append(tokens_by_request(engine.executor.plans[-1]).keys())
    assert preempted == [{"calm"}]
    assert list(engine.finish_reasons) == ["calm", "pushy"]


def test_of_the_client_that_makes_room_the_least_important_request_does() -> None:
    engine = SimulatedEngine(num_kv_blocks=16, max_num_seqs=3, enable_prefix_caching=False)
    fields = {"max_tokens": 40, "ignore_eos": True}
    engine.add("first", prompt(8, 1), **fields, client="many", priority=1)
    engine.add("urgent", prompt(8, 2), **fields, client="many")
    engine.add("other", prompt(8, 3), **fields, client="one")
    engine.run()
    assert list(engine.finish_reasons) == ["other", "urgent", "first"]


def test_clients_with_the_same_service_do_not_preempt_each_other_in_turns() -> None:
    engine = SimulatedEngine(num_kv_blocks=16, max_num_seqs=2, enable_prefix_caching=False)
    for number, client in enumerate("ba"):
        engine.add(client, prompt(8, number), max_tokens=50, ignore_eos=True, client=client, priority=-number)
    num_preemptions = 0
    while engine.core.has_work:
        num_preemptions += engine.step().stats.num_preemptions
    assert num_preemptions == 1
    assert list(engine.finish_reasons) == ["b", "a"], "who came first"


def test_the_prompt_of_the_client_that_had_least_is_computed_first() -> None:
    engine = SimulatedEngine(max_num_batched_tokens=8, enable_prefix_caching=False)
    engine.add("long", prompt(20, 1), max_tokens=2, client="busy", priority=-100)
    engine.add("short", prompt(6, 2), max_tokens=2, client="new")
    assert tokens_by_request(stepped(engine)) == {"short": 6, "long": 2}


def test_a_shared_prefix_is_computed_once() -> None:
    engine = SimulatedEngine(max_num_batched_tokens=64)
    shared = prompt(16)
    engine.add("a", [*shared, 1, 2], max_tokens=4, ignore_eos=True)
    engine.run()
    engine.add("b", [*shared, 3, 4], max_tokens=4, ignore_eos=True)
    engine.step()
    assert tokens_by_request(engine.executor.plans[-1]) == {"b": 2}
    engine.run()
    assert engine.cached_tokens == {"a": 0, "b": 16}


def test_requests_that_arrive_together_share_their_prefix_too() -> None:
    engine = SimulatedEngine(max_num_batched_tokens=64)
    shared = prompt(16)
    for name in "abcd":
        engine.add(name, [*shared, ord(name) % 49 + 1], max_tokens=4, ignore_eos=True)
    engine.run()
    assert engine.cached_tokens == {"a": 0, "b": 16, "c": 16, "d": 16}
    assert tokens_by_request(engine.executor.plans[0]) == {"a": 17}
    assert tokens_by_request(engine.executor.plans[1]) == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_nobody_waits_for_blocks_of_a_step_that_is_over() -> None:
    """The request that computed them was aborted, and prompts in flight go on all the time."""
    engine = SimulatedEngine(runs_ahead=True, max_num_batched_tokens=16, max_model_len=128, num_kv_blocks=64)
    scheduler = engine.core.scheduler
    engine.add("gone", prompt(16, 1), max_tokens=2)
    first = scheduler.schedule()
    engine.core.abort_requests(["gone"])
    engine.add("long", prompt(100, 2), max_tokens=2)
    second = scheduler.schedule()
    assert tokens_by_request(second.plan) == {"long": 16}
    scheduler.update(first, engine.executor.launch(first.plan)())
    engine.add("same", prompt(16, 1), max_tokens=2, priority=-1)
    assert tokens_by_request(scheduler.schedule().plan) == {"same": 16}


def test_an_identical_prompt_still_computes_its_last_token() -> None:
    engine = SimulatedEngine()
    engine.add("a", prompt(16), max_tokens=2, ignore_eos=True)
    engine.run()
    engine.add("b", prompt(16), max_tokens=2, ignore_eos=True)
    engine.run()
    assert engine.cached_tokens["b"] == 12
    assert engine.tokens["a"] == engine.tokens["b"]


def test_another_salt_shares_nothing() -> None:
    engine = SimulatedEngine()
    engine.add("a", prompt(16), max_tokens=2, cache_salt="one")
    engine.run()
    engine.add("b", prompt(16), max_tokens=2, cache_salt="two")
    engine.add("c", prompt(16), max_tokens=2, cache_salt="one")
    engine.run()
    assert engine.cached_tokens == {"a": 0, "b": 0, "c": 12}


def test_another_adapter_shares_nothing() -> None:
    engine = SimulatedEngine()
    engine.add("a", prompt(16), max_tokens=2, adapter="one")
    engine.run()
    engine.add("b", prompt(16), max_tokens=2)
    engine.add("c", prompt(16), max_tokens=2, adapter="two")
    engine.add("d", prompt(16), max_tokens=2, adapter="one")
    engine.add("e", prompt(16), max_tokens=2, cache_salt="one")
    engine.run()
    assert engine.cached_tokens == {"a": 0, "b": 0, "c": 0, "d": 12, "e": 0}


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 0}, {}])
def test_prompt_logprobs_or_the_switch_keep_the_prefix_cache_out(fields: dict[str, object]) -> None:
    engine = SimulatedEngine(enable_prefix_caching=bool(fields))
    engine.add("a", prompt(16), max_tokens=2)
    engine.run()
    engine.add("b", prompt(16), max_tokens=2, **fields)
    engine.run()
    assert engine.cached_tokens["b"] == 0


@pytest.mark.parametrize(("pooling", "num_cached_tokens"), [("mean", 0), ("last", 12)])
def test_an_embedding_reuses_a_prefix_unless_it_needs_every_token(pooling: str, num_cached_tokens: int) -> None:
    engine = SimulatedEngine()
    engine.add("a", prompt(16), max_tokens=2, ignore_eos=True)
    engine.run()
    engine.add("b", prompt(16), max_tokens=0, pooling=pooling)
    engine.run()
    assert engine.cached_tokens["b"] == num_cached_tokens
    assert engine.finish_reasons["b"] == "stop"
    assert engine.tokens["b"] == []


def test_the_mean_of_a_prompt_leaves_its_blocks_for_others_to_find() -> None:
    engine = SimulatedEngine()
    engine.add("a", prompt(16), max_tokens=0, pooling="mean")
    engine.run()
    engine.add("b", prompt(16), max_tokens=2, ignore_eos=True)
    engine.run()
    assert engine.cached_tokens["b"] == 12


def test_a_resumed_request_continues_after_the_tokens_it_brings() -> None:
    whole = reference(prompt(6), _sampling(max_tokens=12, ignore_eos=True), 64)
    engine = SimulatedEngine()
    engine.add("a", prompt(6), max_tokens=12, ignore_eos=True, output_token_ids=whole[:5])
    engine.run()
    assert engine.tokens["a"] == whole[5:]


def test_static_batching_fills_its_group_and_refills_nothing_before_the_last_is_done() -> None:
    engine = SimulatedEngine(batching="static", max_num_seqs=2, max_num_batched_tokens=64)
    engine.add("a", prompt(3, 1), max_tokens=2, ignore_eos=True)
    assert engine.core.wait_time_s() == pytest.approx(0.05)
    engine.step()
    assert engine.executor.plans == []
    engine.add("b", prompt(3, 2), max_tokens=9, ignore_eos=True)
    engine.add("c", prompt(3, 3), max_tokens=2, ignore_eos=True)
    assert engine.core.wait_time_s() is None
    while "b" not in engine.finish_reasons:
        engine.step()
        assert "c" not in tokens_by_request(engine.executor.plans[-1])
    engine.run()
    assert engine.finish_reasons["c"] == "length"


def test_static_batching_starts_a_part_of_a_group_once_it_has_waited() -> None:
    engine = SimulatedEngine(batching="static", max_num_seqs=2)
    engine.add("a", prompt(3), max_tokens=2, ignore_eos=True)
    engine.clock.now += 0.05
    engine.step()
    assert tokens_by_request(engine.executor.plans[-1]) == {"a": 3}


def test_interleaved_batching_runs_one_request_at_a_time_in_turn() -> None:
    engine = SimulatedEngine(batching="interleaved", max_num_seqs=3)
    for seed, name in enumerate("abc"):
        engine.add(name, prompt(3, seed), max_tokens=3, ignore_eos=True)
    engine.run()
    order = [scheduled.request_id for plan in engine.executor.plans for scheduled in plan.scheduled]
    assert all(len(plan.scheduled) == 1 for plan in engine.executor.plans)
    assert order == list("abcabcabc")


def test_sequential_batching_has_one_slot() -> None:
    engine = SimulatedEngine(batching="sequential")
    for seed, name in enumerate("abc"):
        engine.add(name, prompt(3, seed), max_tokens=3, ignore_eos=True)
    engine.run()
    order = [scheduled.request_id for plan in engine.executor.plans for scheduled in plan.scheduled]
    assert order == list("aaabbbccc")


def test_what_a_step_brings_a_request_that_was_aborted_meanwhile_is_dropped() -> None:
    engine = SimulatedEngine()
    for seed, name in enumerate("ab"):
        engine.add(name, prompt(3, seed), max_tokens=3, ignore_eos=True)
    engine.executor.fault = lambda plan: engine.core.abort_requests(["a"])
    engine.run()
    assert engine.tokens["a"] == []
    assert len(engine.tokens["b"]) == 3


def test_a_step_that_fails_once_costs_nobody_anything() -> None:
    engine = SimulatedEngine()
    for name in "abc":
        engine.add(name, prompt(3, ord(name)), max_tokens=5, ignore_eos=True)
    engine.step()
    fail_where(engine, lambda plan: len(engine.executor.plans) == 2, RuntimeError("a hiccup"))
    engine.run()
    for name in "abc":
        assert engine.tokens[name] == reference(prompt(3, ord(name)), SamplingParams(max_tokens=5, ignore_eos=True), 64)


def test_of_a_step_that_fails_the_culprit_is_found_and_ends_with_an_error_that_tells_nothing_of_the_inside() -> None:
    engine = SimulatedEngine(max_num_seqs=8, num_kv_blocks=64)
    names = "abcdefgh"
    for name in names:
        engine.add(name, prompt(3, ord(name)), max_tokens=5, ignore_eos=True)
    fail_where(engine, lambda plan: samples(plan, "f", 4), RuntimeError("boom at 0x1234"))
    errors = [delta.error for _ in range(40) for delta in engine.step().deltas if delta.finish_reason == "error"]
    assert errors == ["the step failed: RuntimeError"]
    assert engine.finish_reasons == {name: "error" if name == "f" else "length" for name in names}
    assert engine.tokens["f"] == reference(prompt(3, ord("f")), SamplingParams(max_tokens=1), 64)
    for name in names.replace("f", ""):
        assert engine.tokens[name] == reference(prompt(3, ord(name)), SamplingParams(max_tokens=5, ignore_eos=True), 64)


def test_who_waits_is_not_drawn_into_the_search_for_a_culprit() -> None:
    engine = SimulatedEngine(max_num_seqs=2)
    for name in "abc":
        engine.add(name, prompt(3, ord(name)), max_tokens=3, ignore_eos=True)
    fail_where(engine, lambda plan: samples(plan, "a", 3), RuntimeError())
    scheduled = [[item.request_id for item in plan.scheduled] for _ in range(3) if (plan := stepped(engine))]
    assert scheduled == [["a", "b"], ["a"], ["b"]]
    engine.run()
    assert engine.finish_reasons == {"a": "error", "b": "length", "c": "length"}


def test_requests_that_fail_alone_one_after_the_other_are_not_to_blame() -> None:
    engine = SimulatedEngine(max_num_seqs=8, num_kv_blocks=64)
    for name in "abcdefgh":
        engine.add(name, prompt(3), max_tokens=3, ignore_eos=True)
    fail_where(engine, lambda plan: True, RuntimeError("nothing works"))
    with pytest.raises(RuntimeError, match="nothing works"):
        engine.run()
    assert len(engine.finish_reasons) == 2  # the third is the engine's end


def test_a_fault_of_the_executor_itself_is_nobodys_and_is_raised() -> None:
    engine = SimulatedEngine()
    engine.add("a", prompt(3), max_tokens=3)
    engine.executor.diagnose = lambda error: "engine"  # type: ignore[method-assign]
    fail_where(engine, lambda plan: True, RuntimeError("illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.step()


def test_out_of_memory_means_fewer_at_a_time_and_after_a_while_more_again() -> None:
    engine = SimulatedEngine(max_num_seqs=8, max_num_batched_tokens=64, num_kv_blocks=128)
    for number in range(24):
        engine.add(f"r{number}", prompt(20, number), max_tokens=40, ignore_eos=True)
    fail_where(engine, lambda plan: len(plan.scheduled) > 4 and len(engine.executor.plans) < 8, MemoryError())
    widths = []
    while engine.core.has_work:
        engine.step()
        widths.append(len(engine.executor.plans[-1].scheduled))
    assert set(engine.finish_reasons.values()) == {"length"}
    assert max(widths[8:60]) <= 4
    assert max(widths) == 8


def test_who_alone_does_not_fit_into_memory_ends_with_an_error() -> None:
    engine = SimulatedEngine(max_num_batched_tokens=64)
    engine.add("long", prompt(40), max_tokens=3)
    engine.add("short", prompt(4), max_tokens=3, ignore_eos=True)
    fail_where(engine, lambda plan: any(item.request_id == "long" for item in plan.scheduled), MemoryError())
    engine.run()
    assert engine.finish_reasons == {"long": "error", "short": "length"}
    chunks = [item.num_tokens for plan in engine.executor.plans for item in plan.scheduled if item.request_id == "long"]
    assert chunks[0] > chunks[-1]  # shorter ones were tried


def test_ahead_the_next_step_is_launched_before_the_last_ones_tokens_are_known() -> None:
    engine = SimulatedEngine(runs_ahead=True)
    engine.add("a", prompt(3), max_tokens=3, ignore_eos=True)
    engine.step()
    assert [len(plan.scheduled) for plan in engine.executor.plans] == [1, 1]
    assert len(engine.tokens["a"]) == 1
    engine.step()
    engine.step()
    assert len(engine.executor.plans) == 3  # none beyond max_tokens
    assert engine.finish_reasons == {"a": "length"}
    assert not engine.core.has_work


def test_ahead_nothing_is_computed_behind_a_prompt_that_wants_no_tokens() -> None:
    engine = SimulatedEngine(runs_ahead=True)
    engine.add("a", prompt(7), max_tokens=0)
    engine.run()
    assert [tokens_by_request(plan) for plan in engine.executor.plans] == [{"a": 7}]


def test_ahead_what_was_counted_in_a_step_that_is_void_is_reported_with_the_one_that_failed() -> None:
    engine = SimulatedEngine(runs_ahead=True)
    fail_where(engine, lambda plan: len(engine.executor.plans) == 3, RuntimeError("a hiccup"))
    for seed, name in enumerate("abc"):  # the third step fails; the one planned after it lets "c" in
        engine.add(name, prompt(3, seed), max_tokens=9, ignore_eos=True)
        stats = engine.step().stats
    assert (stats.num_preemptions, stats.num_slots_refilled) == (3, 2)
    engine.run()
    assert all(len(tokens) == 9 for tokens in engine.tokens.values())


def test_ahead_a_token_after_the_end_of_sequence_is_dropped() -> None:
    engine = SimulatedEngine(runs_ahead=True)
    start = next(start for start in range(2, 500) if 2 < len(reference(prompt(3, start), SamplingParams(), 64)) < 9)
    engine.add("a", prompt(3, start), max_tokens=20)
    engine.run()
    assert engine.tokens["a"] == reference(prompt(3, start), SamplingParams(), 64)
    assert len(engine.executor.plans) == len(engine.tokens["a"]) + 1


@pytest.mark.parametrize(
    ("fields", "num_launched"),
    [
        ({"presence_penalty": 0.5}, 2),
        ({"bad_words_token_ids": ((3,), (4, 5, 6))}, 2),
        ({"grammar": Grammar("regex", "a+")}, 1),
    ],
)
def test_only_a_grammar_waits_for_the_tokens_that_it_follows(fields: dict[str, object], num_launched: int) -> None:
    engine = SimulatedEngine(runs_ahead=True)
    engine.add("a", prompt(3), max_tokens=3, ignore_eos=True, **fields)
    engine.step()
    assert len(engine.executor.plans) == num_launched


def test_a_failed_row_fails_its_request_alone() -> None:
    engine = SimulatedEngine()
    for seed, name in enumerate("ab"):
        engine.add(name, prompt(3, seed), max_tokens=3, ignore_eos=True)
    working = engine.executor.launch

    def one_bad_row(plan: StepPlan) -> Callable[[], StepResult]:
        tokens = working(plan)().sampled_token_ids
        tokens.pop("a", None)
        return lambda: StepResult(sampled_token_ids=tokens, errors={"a": "non-finite logits"})

    engine.executor.launch = one_bad_row  # type: ignore[method-assign]
    engine.run()
    assert engine.finish_reasons == {"a": "error", "b": "length"}
    assert engine.tokens["b"] == reference(prompt(3, 1), _sampling(max_tokens=3, ignore_eos=True), 64)


def _sampling(**fields: object):  # type: ignore[no-untyped-def]
    from orcinus.engine.sampling_params import SamplingParams

    return SamplingParams(**fields)  # type: ignore[arg-type]
