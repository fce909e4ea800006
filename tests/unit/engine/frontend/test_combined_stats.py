"""Gauges of several engines are those of one large one."""

import msgspec

from orcinus.engine.frontend.combined_stats import combine_stats
from orcinus.engine.messages import StepStats

STEP = StepStats(
    step_time_s=0.5,
    num_prefill_tokens=7,
    num_decode_tokens=3,
    num_running=2,
    num_waiting=1,
    num_slots=4,
    num_running_tokens=500,
    slot_s=0.25,
    slot_capacity_s=2.0,
    blocked_by=["slots"],
    gpu_energy_j=3.0,
    num_kv_blocks=100,
    num_kv_blocks_used=30,
    num_snapshots=8,
    num_snapshots_used=5,
    device_utilization=0.9,
    device_memory_used_bytes=10,
    device_memory_total_bytes=20,
)


def test_numbers_of_one_engine_are_its_own() -> None:
    assert combine_stats(STEP, []) is STEP


def test_gauges_add_up_and_counts_of_the_step_stay_its_own() -> None:
    other = msgspec.structs.replace(
        STEP, step_time_s=9.0, num_prefill_tokens=1000, slot_s=7.0, gpu_energy_j=9.0, device_utilization=0.1
    )
    assert combine_stats(STEP, [other, other]) == msgspec.structs.replace(
        STEP,
        num_running=6,
        num_waiting=3,
        num_slots=12,
        num_running_tokens=1500,
        num_kv_blocks=300,
        num_kv_blocks_used=90,
        num_snapshots=24,
        num_snapshots_used=15,
        device_utilization=(0.9 + 0.1 + 0.1) / 3,
        device_memory_used_bytes=30,
        device_memory_total_bytes=60,
    )


def test_what_an_engine_does_not_know_of_its_device_is_left_out() -> None:
    assert combine_stats(STEP, [StepStats()]) == STEP
    unknown = combine_stats(StepStats(), [StepStats()])
    assert (unknown.device_utilization, unknown.device_memory_used_bytes) == (None, None)


def test_engines_in_the_memory_of_one_machine_have_it_once() -> None:
    both = combine_stats(STEP, [STEP], is_memory_shared=True)
    assert (both.device_memory_used_bytes, both.device_memory_total_bytes) == (20, 20)
    unknown = combine_stats(StepStats(), [StepStats()], is_memory_shared=True)
    assert unknown.device_memory_total_bytes is None
