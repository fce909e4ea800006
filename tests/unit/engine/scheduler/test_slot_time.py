"""Slot-seconds are those of the clock, whatever steps and looks there are."""

import pytest

from bench.simulation.traffic import VirtualClock
from orcinus.engine.scheduler.slot_time import SlotTime
from tests.unit.engine.scheduler.simulator import SimulatedEngine


def test_time_is_weighted_by_the_slots_that_are_held() -> None:
    clock = VirtualClock()
    held = SlotTime(clock)
    clock.now = 1.0
    held.hold()
    clock.now = 3.0
    held.hold()
    clock.now = 4.0
    assert held.take() == (2.0 + 2 * 1.0, 4.0)
    clock.now = 5.0
    held.release()
    clock.now = 7.0
    assert held.take() == (2 * 1.0 + 2.0, 3.0)
    held.release()
    clock.now = 9.0
    assert held.take() == (0.0, 2.0)


def test_what_is_taken_often_is_the_same_in_sum() -> None:
    clock = VirtualClock()
    held = SlotTime(clock)
    held.hold()
    taken = []
    for _ in range(10):
        clock.now += 0.5
        taken.append(held.take())
    assert sum(seconds for seconds, _ in taken) == sum(seconds for _, seconds in taken) == 5.0


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_steps_account_for_all_the_time_that_slots_are_held(runs_ahead: bool) -> None:
    """Requests of one token hold no slot at the end of any step, where a gauge would be read."""
    engine = SimulatedEngine(runs_ahead=runs_ahead, max_num_seqs=2)
    for index in range(6):
        engine.add(f"r{index}", [1 + index, 2, 3], max_tokens=1, ignore_eos=True)
    held_s = there_s = 0.0
    while engine.core.has_work:
        stats = engine.step().stats
        held_s, there_s = held_s + stats.slot_s, there_s + stats.slot_capacity_s
        assert stats.num_running == 0 or runs_ahead
    assert there_s == pytest.approx(2 * engine.clock.now)
    assert held_s == pytest.approx(there_s), "both slots were held in each of the steps"
    engine.clock.now += 5.0
    idle = engine.core.stats()
    assert (idle.slot_s, idle.slot_capacity_s) == pytest.approx((0.0, 10.0))


def test_a_preempted_request_holds_no_slot() -> None:
    engine = SimulatedEngine(num_kv_blocks=16, max_num_seqs=2, enable_prefix_caching=False)
    for name in ("a", "b"):
        engine.add(name, [1] * 8, max_tokens=50, ignore_eos=True)
    held_s = expected_s = 0.0
    while engine.core.has_work:
        before = engine.clock.now
        held_s += engine.step().stats.slot_s
        expected_s += len(engine.executor.plans[-1].scheduled) * (engine.clock.now - before)
    assert held_s == pytest.approx(expected_s)
    assert held_s < 2 * engine.clock.now
