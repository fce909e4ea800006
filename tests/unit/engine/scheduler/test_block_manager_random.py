"""Random traffic on few blocks: books balance, answers are the reference's, and no block has foreign contents."""

import random

import pytest

from orcinus.engine.messages import CacheGroup
from orcinus.engine.scheduler.cache_groups import window_demand
from tests.effort import slow_but_for
from tests.unit.engine.scheduler.block_traffic import Load, Traffic
from tests.unit.engine.scheduler.naive_blocks import Compared
from tests.unit.engine.scheduler.test_cache_groups import concurrency

LOADS = {
    "in turn": Load(max_num_seqs=6, max_tokens=16),
    "ahead": Load(max_num_seqs=6, max_tokens=24, num_steps_in_flight=2),
    "ahead, with drafts": Load(max_num_seqs=6, max_tokens=24, num_steps_in_flight=2, max_drafts=5),
    "no prefix cache": Load(max_num_seqs=6, max_tokens=16, is_caching=False),
}
WINDOWS = {"one group": [], "a window": [10], "two windows": [6, 17]}


@pytest.mark.parametrize("num_full", slow_but_for([26, 60], 26))
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_random_traffic_is_answered_as_by_the_definition(load: Load, windows: list[int], num_full: int) -> None:
    sizes = [(window, min(num_full, window_demand(window, concurrency(load)))) for window in windows]
    groups = [CacheGroup(num_full, 1), *(CacheGroup(size, 1, window) for window, size in sizes)]
    traffic = Traffic(Compared(groups, load.block_size), groups, load, random.Random(len(windows)))
    for _ in range(2_000):
        traffic.act()
    assert traffic.num_finished > 10
    assert (traffic.num_hits > 10) == load.is_caching
    assert (traffic.num_rejected > 10) == (load.max_drafts > 0)
    assert traffic.num_extended > 0 or num_full > 26 or not load.is_caching
    assert traffic.num_preempted > 0 or num_full > 26
