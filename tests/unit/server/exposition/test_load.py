"""The line of ten seconds says what happened in them, and there is none where nothing did."""

from dataclasses import replace

from orcinus.server.exposition.load import Load, describe_load

IDLE = Load(
    num_slots=16,
    num_running=0,
    num_waiting=0,
    num_running_tokens=0,
    kv_utilization=0.0,
    slot_s=100.0,
    slot_capacity_s=1_000.0,
    num_prefill_tokens=5_000,
    num_generated_tokens=700,
    prefix_cache_queries=100,
    prefix_cache_hits=50,
    num_preemptions=1,
    num_restarts=1,
    blocked={"slots": 9, "blocks": 0},
    outcomes={"stop": 5, "error": 1},
    ttft_s=10.0,
    num_first_tokens=6,
    inter_token_s=50.0,
    num_next_tokens=694,
    energy_j=None,
)


def test_nothing_is_said_of_a_time_in_which_nothing_happened() -> None:
    assert describe_load(IDLE, replace(IDLE, slot_capacity_s=1_160.0), 10.0) is None


def test_a_busy_time_is_one_readable_line() -> None:
    after = replace(
        IDLE,
        num_running=12,
        num_waiting=3,
        num_running_tokens=4_321,
        kv_utilization=0.724,
        slot_s=220.0,
        slot_capacity_s=1_160.0,
        num_prefill_tokens=17_000,
        num_generated_tokens=5_200,
        prefix_cache_queries=1_100,
        prefix_cache_hits=500,
        num_preemptions=3,
        num_restarts=2,
        blocked={"slots": 10, "blocks": 40},
        outcomes={"stop": 9, "error": 2},
        ttft_s=12.0,
        num_first_tokens=16,
        inter_token_s=60.41,
        num_next_tokens=1_694,
    )
    assert describe_load(IDLE, after, 10.0) == (
        "12 of 16 slots (75% of the time), 3 waiting for blocks; 1,200 prompt and 450 generated tokens/s, 45% of"
        " prompts cached; first token after 200 ms, each next after 10 ms; KV cache 72% with 4,321 tokens; ended:"
        " 4 stop, 1 error; 2 preempted; engine restarts: 1"
    )


def test_what_is_not_known_is_left_out() -> None:
    line = describe_load(IDLE, replace(IDLE, num_running=1, num_prefill_tokens=5_010), 10.0)
    assert line == "1 of 16 slots, 0 waiting; 1 prompt and 0 generated tokens/s; KV cache 0% with 0 tokens"


def test_those_who_wait_for_an_engine_are_work() -> None:
    line = describe_load(IDLE, replace(IDLE, num_waiting=7), 10.0)
    assert line is not None
    assert "7 waiting;" in line


def test_energy_is_told_by_generated_token_where_it_is_measured() -> None:
    before = replace(IDLE, energy_j=1_000.0)
    line = describe_load(before, replace(before, num_generated_tokens=900, energy_j=1_380.0), 10.0)
    assert line is not None
    assert line.endswith("; 1.9 J a generated token")
