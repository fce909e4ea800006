"""The arithmetic of the KV cache: what fits, what is refused, and with which numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.messages import CacheGroup
from orcinus.engine.scheduler.cache_groups import GroupCost
from orcinus.engine.startup.cache_size import (
    BatchLimits,
    CacheSize,
    StateSize,
    check_memory,
    default_cpu_memory,
    default_cuda_memory,
    resolve_cache_size,
    resolve_limits,
    resolve_states,
    useful_states,
    wanted_context,
)
from tests.integration.tiny_models import engine_config

LIMITS = BatchLimits(max_num_seqs=4, max_num_batched_tokens=16, block_size=8)
OPEN: dict[str, Any] = {"max_num_seqs": None, "max_num_batched_tokens": None, "block_size": None}


def size(memory_bytes: int, max_model_len: int | None = None, model_max_len: int = 100) -> CacheSize:
    config = engine_config(Path(), max_model_len=max_model_len)
    wanted = wanted_context(config, model_max_len)
    return resolve_cache_size(config, LIMITS, wanted_len=wanted, memory_bytes=memory_bytes, costs=[GroupCost(3, 1000)])


def test_never_more_blocks_than_all_slots_can_use() -> None:
    assert size(10**9) == CacheSize([CacheGroup(4 * 13, 3)], 8, 52_000, 100)
    assert size(10**9, max_model_len=64).num_blocks == 4 * 8


def test_memory_limits_the_blocks() -> None:
    resolved = size(20_500)
    assert (resolved.num_blocks, resolved.num_bytes, resolved.max_model_len) == (20, 20_000, 100)


def test_open_context_shrinks_to_what_fits() -> None:
    assert size(5_000).max_model_len == 40


def test_a_context_that_shrinks_is_one_warning_with_both_numbers(caplog: pytest.LogCaptureFixture) -> None:
    size(5_000)
    [warning] = caplog.messages
    assert "the context is 40 tokens and not the model's 100" in warning
    caplog.clear()
    size(20_500)
    size(5_000, max_model_len=40)
    assert caplog.messages == []


def test_explicit_context_that_does_not_fit_is_refused_with_the_number_that_would() -> None:
    with pytest.raises(ModelLoadError, match=r"context of 64 tokens .* at most 40 tokens fit"):
        size(5_000, max_model_len=64)


def test_context_beyond_the_models_own_is_refused_with_both_numbers() -> None:
    with pytest.raises(ModelLoadError, match=r"101, .* 100 tokens"):
        size(10**9, max_model_len=101)


def test_windows_leave_their_memory_to_a_longer_context() -> None:
    """One layer of three keeps everything; the others keep 16 tokens of each of four requests."""
    config, memory = engine_config(Path(), max_model_len=None), 300 * 3000
    costs = [GroupCost(1, 1000), GroupCost(2, 2000, window=16)]
    alike = resolve_cache_size(config, LIMITS, wanted_len=100_000, memory_bytes=memory, costs=[GroupCost(3, 3000)])
    grouped = resolve_cache_size(config, LIMITS, wanted_len=100_000, memory_bytes=memory, costs=costs)
    assert alike.max_model_len == 300 * 8
    full, window = grouped.groups
    assert grouped.max_model_len == full.num_blocks * 8 > 1.9 * alike.max_model_len
    assert (window.num_blocks, window.num_layers, window.window) == (-(-full.num_blocks // 4), 2, 16)
    assert memory - 3000 < grouped.num_bytes <= memory


def test_explicit_context_is_refused_with_what_it_needs_beside_windows() -> None:
    costs = [GroupCost(1, 2**20), GroupCost(2, 2**21, window=16)]
    with pytest.raises(ModelLoadError, match=r"64 tokens needs 24\.0 MiB .* 20\.0 MiB: at most 48 tokens fit"):
        resolve_cache_size(
            engine_config(Path(), max_model_len=64), LIMITS, wanted_len=64, memory_bytes=20 * 2**20, costs=costs
        )


def test_memory_for_not_even_one_block_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="at most 0 tokens fit"):
        size(999)


def test_defaults_differ_by_device() -> None:
    config = engine_config(Path(), **OPEN)
    assert resolve_limits(config, "cpu") == BatchLimits(32, 512, 64)
    assert resolve_limits(config, "cuda", block_size_multiple=256) == BatchLimits(256, 2048, 256)
    many = replace(config, max_num_seqs=600)
    assert resolve_limits(many, "cpu").max_num_batched_tokens == 600


def test_step_must_have_room_for_every_running_request() -> None:
    config = engine_config(Path(), max_num_seqs=8, max_num_batched_tokens=7)
    with pytest.raises(ModelLoadError, match=r"\(7\) .* \(8\)"):
        resolve_limits(config, "cpu")


def test_block_size_that_the_kernel_cannot_read_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="multiple of 256"):
        resolve_limits(engine_config(Path(), block_size=48), "cuda", block_size_multiple=256)


def test_an_amount_beyond_all_memory_is_refused_with_both_numbers() -> None:
    check_memory(2**30, 2**30)
    with pytest.raises(ModelLoadError, match="kv_cache_memory is 2 GiB, but there are 1 GiB of memory in all"):
        check_memory(2**31, 2**30)


@pytest.mark.parametrize("available_bytes", [10**9, 10**12])
def test_on_a_cpu_the_cache_gets_a_share_of_what_is_free_on_small_machines_and_on_large_ones(
    available_bytes: int,
) -> None:
    assert default_cpu_memory(available_bytes) == 4 * available_bytes // 10


def test_several_engines_divide_what_is_free_beside_the_weights_that_are_still_to_come() -> None:
    assert default_cpu_memory(1000, 2, 200) == 160
    assert default_cpu_memory(1000, 3, 600) == 0


def test_cuda_share_is_what_weights_and_the_largest_step_leave() -> None:
    assert default_cuda_memory(100, 30) == 60
    assert default_cuda_memory(100, 95) == 0


def states(memory_bytes: int, host_bytes: int | None = None, **settings: Any) -> StateSize:
    """Resolve the states of 100 bytes, of which five slots have one."""
    return resolve_states(engine_config(Path(), **settings), LIMITS, 100, memory_bytes, host_bytes)


def test_snapshots_get_an_eighth_of_what_slots_leave_and_of_a_small_cache_what_eight_of_them_take() -> None:
    assert states(80_500) == StateSize(100, 5, 100)
    assert states(2_500) == StateSize(100, 5, 8)
    assert states(2_000) == StateSize(100, 5, 1)


def test_for_a_gpu_snapshots_are_in_the_hosts_memory() -> None:
    assert states(501, host_bytes=80_000) == StateSize(100, 5, 100)
    assert states(501, host_bytes=80_000, state_cache_memory=79_999).num_snapshots == 799


def test_the_setting_says_how_many_snapshots_there_are() -> None:
    assert states(80_500, state_cache_memory=250).num_snapshots == 2
    assert states(80_500, state_cache_memory=0).num_snapshots == 0
    assert states(80_500, state_cache_memory=250, enable_prefix_caching=False) == StateSize(100, 5, 0)


def test_a_model_without_states_gives_them_nothing() -> None:
    assert resolve_states(engine_config(Path(), state_cache_memory=10**9), LIMITS, 0, 1000) == StateSize(0, 0)


def test_states_may_take_all_there_is() -> None:
    """A model without attention has nothing else to keep."""
    assert states(500, state_cache_memory=0) == StateSize(100, 5, 0)
    assert states(900, state_cache_memory=400) == StateSize(100, 5, 4)


def test_states_for_which_there_is_no_room_are_refused_with_both_numbers() -> None:
    with pytest.raises(
        ModelLoadError, match=r"states of 4 sequences \(max_num_seqs\): 500 B are wanted, but kv_cache_memory is 499 B"
    ):
        states(499)
    with pytest.raises(ModelLoadError, match=r"state_cache_memory: 600 B are wanted, but what is left of .* is 500 B"):
        states(1000, state_cache_memory=600)
    with pytest.raises(ModelLoadError, match="600 B are wanted, but what is left of the host's free memory is 599 B"):
        states(1000, host_bytes=599, state_cache_memory=600)


@pytest.mark.parametrize("host_bytes", [None, 1000])
def test_memory_that_has_no_room_for_one_snapshot_is_refused_with_both_numbers(host_bytes: int | None) -> None:
    with pytest.raises(ModelLoadError, match="state_cache_memory: 99 B have no room for a snapshot, which takes 100 B"):
        states(1000, host_bytes, state_cache_memory=99)


def test_snapshots_take_their_share_of_the_cache_that_slots_can_use() -> None:
    cache = CacheSize([CacheGroup(400, 1)], 8, 70_000, 100)
    config = engine_config(Path())
    assert useful_states(config, StateSize(100, 5, 9_000), cache).num_snapshots == 100
    assert useful_states(config, StateSize(100, 5, 50), cache).num_snapshots == 50
    assert useful_states(config, StateSize(10_000, 5, 90), cache).num_snapshots == 20, "four for each slot"
    assert useful_states(config, StateSize(10_000, 1, 90), cache).num_snapshots == 8
    without_attention = CacheSize([CacheGroup(400, 0)], 8, 0, 100)
    assert useful_states(config, StateSize(10_000, 5, 90), without_attention).num_snapshots == 20
    assert useful_states(config, StateSize(100, 5, 0), cache).num_snapshots == 0
    told = engine_config(Path(), state_cache_memory=900_000)
    assert useful_states(told, StateSize(100, 5, 9_000), cache).num_snapshots == 400
