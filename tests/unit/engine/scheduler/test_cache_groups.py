import random

import pytest

from orcinus.engine.messages import CacheGroup
from orcinus.engine.scheduler.block_manager import BlockManager
from orcinus.engine.scheduler.cache_groups import (
    Concurrency,
    GroupCost,
    blocks_behind,
    bytes_of,
    fit_groups,
    num_window_blocks,
    window_demand,
)
from tests.unit.engine.scheduler.block_traffic import Load, Traffic


def concurrency(load: Load) -> Concurrency:
    in_flight = load.max_tokens * load.num_steps_in_flight + load.max_num_seqs * load.max_drafts
    return Concurrency(load.max_num_seqs, in_flight, load.block_size)


@pytest.mark.parametrize(("window", "expected"), [(1, 0), (2, 1), (5, 1), (6, 2), (9, 2), (10, 3)])
def test_blocks_behind_hold_every_key_that_a_blocks_first_token_sees(window: int, expected: int) -> None:
    first = 40
    assert blocks_behind(window, 4) == expected == len({position // 4 for position in range(first - window + 1, first)})


def held_at_worst(num_blocks: int) -> BlockManager:
    """Three sequences with two tokens, two, and all others of 32 in flight, each just across the end of a block."""
    blocks = BlockManager([CacheGroup(1000, 1), CacheGroup(num_blocks, 1, window=10)], block_size=4)
    for name, num_in_flight in (("a", 2), ("b", 2), ("c", 28)):
        blocks.allocate(name, 100)
        for booked in range(4, 43, 4):
            blocks.advance(name, booked)
            blocks.release_behind(name, booked)
        blocks.advance(name, 43 + num_in_flight)
    return blocks


def test_demand_is_hardly_more_than_what_can_be_needed() -> None:
    """The first step of a sequence is booked at position 40; that it has computed 43 tokens changes nothing."""
    held = 2 * (3 + 2) + (3 + 8)
    assert window_demand(10, Concurrency(3, 32, 4)) == 3 * (3 + 2) + 8 == held + 2
    held_at_worst(held).check_integrity()
    with pytest.raises(AssertionError, match="run dry"):
        held_at_worst(held - 1)


LOADS = {
    "one step": Load(max_num_seqs=4, max_tokens=16),
    "two steps": Load(max_num_seqs=4, max_tokens=16, num_steps_in_flight=2),
    "drafts": Load(max_num_seqs=4, max_tokens=24, max_drafts=5),
    "two steps, drafts": Load(max_num_seqs=4, max_tokens=24, num_steps_in_flight=2, max_drafts=5),
    "many": Load(max_num_seqs=12, max_tokens=12, num_steps_in_flight=2),
    "long steps": Load(max_num_seqs=3, max_tokens=64, num_steps_in_flight=2),
    "blocks of one token": Load(max_num_seqs=4, max_tokens=16, block_size=1, longest=40),
}


@pytest.mark.slow
@pytest.mark.parametrize("num_full", [24, 30, 60, 1000])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_window_never_runs_dry_on_the_fewest_blocks_that_it_may_have(load: Load, num_full: int) -> None:
    """Whether the demand decides or the full group's number, which is so small here that requests are preempted."""
    num_full = max(num_full, -(-load.longest // load.block_size))
    sizes = [(window, min(num_full, window_demand(window, concurrency(load)))) for window in (1, 6, 13)]
    groups = [CacheGroup(num_full, 1), *(CacheGroup(size, 1, window) for window, size in sizes)]
    traffic = Traffic(BlockManager(groups, load.block_size), groups, load, random.Random(num_full))
    for _ in range(1_500):
        traffic.act()
    assert traffic.num_finished > 5


AT_ONCE = Concurrency(max_num_seqs=32, num_tokens_in_flight=512, block_size=64)
FULL, SLIDING = GroupCost(4, 400), GroupCost(22, 2_200, window=512)
NOTHING = GroupCost(0, 0)


def test_window_leaves_its_memory_to_the_layers_that_keep_everything() -> None:
    memory = 2_600 * 1_000
    groups = fit_groups([FULL, SLIDING], memory, most_full_blocks=10**6, concurrency=AT_ONCE)
    assert [(group.num_layers, group.window) for group in groups] == [(4, None), (22, 512)]
    assert groups[0].num_blocks > 2_500, "as blocks of all layers alike there are 1,000"
    assert groups[1].num_blocks == num_window_blocks(groups[0].num_blocks, 512, AT_ONCE)
    assert memory - 2_600 < bytes_of(groups, [FULL, SLIDING]) <= memory


@pytest.mark.parametrize("memory", [0, 1, 2_599, 2_600, 100_000, 900_000, 10_000_000])
def test_groups_fit_the_memory_and_one_block_more_does_not(memory: int) -> None:
    groups = fit_groups([FULL, SLIDING], memory, most_full_blocks=10**6, concurrency=AT_ONCE)
    num_full = groups[0].num_blocks
    assert bytes_of(groups, [FULL, SLIDING]) <= memory
    more = [CacheGroup(num_full + 1, 4), CacheGroup(num_window_blocks(num_full + 1, 512, AT_ONCE), 22, 512)]
    assert bytes_of(more, [FULL, SLIDING]) > memory


def test_little_memory_is_shared_out_as_if_no_layer_had_a_window() -> None:
    groups = fit_groups([FULL, SLIDING], 2_600 * 100, most_full_blocks=10**6, concurrency=AT_ONCE)
    assert [group.num_blocks for group in groups] == [100, 100]


def test_no_group_has_more_blocks_than_requests_can_use() -> None:
    groups = fit_groups([FULL, SLIDING], 10**12, most_full_blocks=700, concurrency=AT_ONCE)
    assert groups[0].num_blocks == 700
    assert groups[1].num_blocks == window_demand(512, AT_ONCE) < 700


def test_one_group_takes_all_the_memory() -> None:
    assert fit_groups([FULL], 4_199, most_full_blocks=1_000, concurrency=AT_ONCE) == [CacheGroup(10, 4)]


def test_model_of_windows_alone_counts_its_tokens_in_a_group_that_costs_nothing() -> None:
    demand = window_demand(512, AT_ONCE)
    plenty = fit_groups([NOTHING, SLIDING], demand * 2_200, most_full_blocks=1_200, concurrency=AT_ONCE)
    assert plenty == [CacheGroup(1_200, 0), CacheGroup(demand, 22, 512)]
    little = fit_groups([NOTHING, SLIDING], (demand - 1) * 2_200, most_full_blocks=1_200, concurrency=AT_ONCE)
    assert little == [CacheGroup(demand - 1, 0), CacheGroup(demand - 1, 22, 512)]
