"""The arithmetic of the KV cache: what fits, what is refused, and with which numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.startup.cache_size import (
    BatchLimits,
    CacheSize,
    check_memory,
    default_cpu_memory,
    default_cuda_memory,
    resolve_cache_size,
    resolve_limits,
)
from tests.integration.tiny_models import engine_config

LIMITS = BatchLimits(max_num_seqs=4, max_num_batched_tokens=16, block_size=8)
OPEN: dict[str, Any] = {"max_num_seqs": None, "max_num_batched_tokens": None, "block_size": None}


def size(memory_bytes: int, max_model_len: int | None = None, model_max_len: int = 100) -> CacheSize:
    config = engine_config(Path(), max_model_len=max_model_len)
    return resolve_cache_size(
        config, LIMITS, model_max_len=model_max_len, memory_bytes=memory_bytes, bytes_per_block=1000
    )


def test_never_more_blocks_than_all_slots_can_use() -> None:
    assert size(10**9) == CacheSize(4 * 13, 8, 1000, 100)
    assert size(10**9, max_model_len=64).num_blocks == 4 * 8


def test_memory_limits_the_blocks() -> None:
    resolved = size(20_500)
    assert (resolved.num_blocks, resolved.num_bytes, resolved.max_model_len) == (20, 20_000, 100)


def test_open_context_shrinks_to_what_fits() -> None:
    assert size(5_000).max_model_len == 40


def test_explicit_context_that_does_not_fit_is_refused_with_the_number_that_would() -> None:
    with pytest.raises(ModelLoadError, match=r"context of 64 tokens .* at most 40 tokens fit"):
        size(5_000, max_model_len=64)


def test_context_beyond_the_models_own_is_refused_with_both_numbers() -> None:
    with pytest.raises(ModelLoadError, match=r"101, .* 100 tokens"):
        size(10**9, max_model_len=101)


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


def test_cpu_share_is_bounded() -> None:
    assert default_cpu_memory(10**9) == 4 * 10**8
    assert default_cpu_memory(10**12) == 4 * 2**30


def test_cuda_share_is_what_weights_and_the_largest_step_leave() -> None:
    assert default_cuda_memory(100, 30) == 60
    assert default_cuda_memory(100, 95) == 0
