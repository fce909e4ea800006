"""What a step says those wait for who get nothing of it."""

from bench.simulation.traffic import VirtualClock
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest
from orcinus.engine.sampling_params import SamplingParams
from tests.unit.engine.scheduler.simulator import SimulatedEngine, Simulator, engine_info
from tests.unit.engine.scheduler.test_scheduler import prompt


def add(engine: SimulatedEngine, name: str, length: int, max_tokens: int = 8) -> None:
    engine.add(name, prompt(length, len(name)), max_tokens=max_tokens, ignore_eos=True)


def test_nobody_waits_where_all_have_a_slot() -> None:
    engine = SimulatedEngine(max_num_seqs=2)
    add(engine, "a", 4)
    add(engine, "b", 4)
    assert engine.step().stats.blocked_by == []
    assert engine.step().stats.blocked_by == []


def test_a_request_beyond_the_slots_waits_for_one_in_each_step() -> None:
    engine = SimulatedEngine(max_num_seqs=2)
    for name in ("a", "b", "c"):
        add(engine, name, 4, max_tokens=3)
    limits = []
    while "a" not in engine.finish_reasons:
        limits.append(engine.step().stats.blocked_by)
    assert limits == [["slots"]] * 3
    assert engine.step().stats.blocked_by == []


def test_a_request_that_finds_no_blocks_waits_for_them_although_there_are_slots() -> None:
    engine = SimulatedEngine(max_num_seqs=4, num_kv_blocks=16, enable_prefix_caching=False)
    engine.add("a", prompt(32, 1), max_tokens=30, ignore_eos=True)
    engine.step()
    engine.add("large", prompt(32, 2), max_tokens=4, ignore_eos=True)
    assert engine.step().stats.blocked_by == ["blocks"]


def test_a_prompt_with_a_slot_waits_for_tokens_of_a_step() -> None:
    engine = SimulatedEngine(max_num_seqs=4, max_num_batched_tokens=8, enable_prefix_caching=False)
    for seed, name in enumerate(("a", "b", "c")):
        engine.add(name, prompt(8, seed), max_tokens=2, ignore_eos=True)
    stats = engine.step().stats
    assert stats.num_running == 3
    assert stats.blocked_by == ["tokens"]


def test_a_prompt_whose_chunk_is_cut_is_not_waiting() -> None:
    engine = SimulatedEngine(max_num_seqs=4, max_num_batched_tokens=8, enable_prefix_caching=False)
    engine.add("a", prompt(12, 1), max_tokens=2, ignore_eos=True)
    assert engine.step().stats.blocked_by == []


def test_two_limits_of_one_step_are_both_told_and_each_once() -> None:
    engine = SimulatedEngine(max_num_seqs=4, max_num_batched_tokens=8, enable_prefix_caching=False)
    for seed in range(6):
        engine.add(f"r{seed}", prompt(8, seed), max_tokens=2, ignore_eos=True)
    assert engine.step().stats.blocked_by == ["slots", "tokens"]


def test_a_request_that_would_break_the_objective_waits_for_it() -> None:
    info = engine_info(max_num_seqs=4)
    clock = VirtualClock()
    executor = Simulator(info, clock)
    core = EngineCore(info, executor, target_itl_ms=0.001, clock=clock)
    for name in ("a", "b"):
        sampling = SamplingParams(max_tokens=20, ignore_eos=True)
        core.add_request(AddRequest(request_id=name, prompt_token_ids=[1, 2, 3], sampling=sampling, arrival_time=0.0))
    stats = core.step().stats
    assert stats.num_running == 1, "one always runs"
    assert stats.blocked_by == ["objective"]


def test_who_waits_for_a_static_batch_to_end_waits_for_something_else() -> None:
    engine = SimulatedEngine(max_num_seqs=2, batching="static")
    add(engine, "a", 4)
    add(engine, "b", 4)
    engine.step()
    add(engine, "c", 4)
    assert engine.step().stats.blocked_by == ["other"]


def test_who_waits_while_a_culprit_is_sought_waits_for_something_else() -> None:
    engine = SimulatedEngine(max_num_seqs=4)
    for name in ("a", "bb", "ccc", "dddd"):
        add(engine, name, 3)
    failures = iter([RuntimeError("once")])

    def fault(plan: object) -> None:
        for failure in failures:
            raise failure

    engine.executor.fault = fault
    engine.step()
    assert engine.step().stats.blocked_by == ["other"]


def test_tokens_of_those_that_run_are_told() -> None:
    engine = SimulatedEngine(max_num_seqs=2)
    for name in ("a", "bb", "ccc"):
        add(engine, name, 5, max_tokens=4)
    assert engine.step().stats.num_running_tokens == 2 * (5 + 1)
    assert engine.step().stats.num_running_tokens == 2 * (5 + 2)
    engine.run()
    assert engine.core.stats().num_running_tokens == 0
