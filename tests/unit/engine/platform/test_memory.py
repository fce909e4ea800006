"""Large memory: zeros that can be written, of any size; mapped weights give theirs back and stay what they are."""

import ctypes
import mmap
import multiprocessing
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from orcinus.engine.platform.memory import MappedFiles, large_blocks_given_back, populate, zeroed_bytes

NUM_WEIGHT_BYTES = 64 << 20


@pytest.mark.parametrize("size", [0, 1, 63, mmap.PAGESIZE, 2 * 2**20, 5 * 2**20 + 3])
def test_memory_is_zeros_of_the_size_asked_for_and_can_be_written(size: int) -> None:
    memory = zeroed_bytes(size)
    assert memory.shape == (size,)
    assert memory.dtype is torch.uint8
    assert not memory.any()
    memory.fill_(7)
    assert int(memory.sum()) == 7 * size


def test_memory_begins_at_a_page_and_overlaps_with_no_other() -> None:
    pieces = [zeroed_bytes(size) for size in (1, 100, 3 * 2**20)]
    assert all(piece.data_ptr() % mmap.PAGESIZE == 0 for piece in pieces)
    pieces[0].fill_(1)
    pieces[2].fill_(1)
    assert not pieces[1].any()


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    view = zeroed_bytes(4 * 2**20).view(torch.float32)[-8:]
    others = [zeroed_bytes(4 * 2**20).fill_(255) for _ in range(4)]
    assert len(others) == 4
    assert view.tolist() == [0.0] * 8


def test_more_than_there_is_fails_as_memory() -> None:
    """As torch's own allocations do, so that who allocates a cache can say what did not fit."""
    with pytest.raises((MemoryError, RuntimeError)):
        zeroed_bytes(2**60)


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can")
def test_memory_is_there_before_it_is_written_to() -> None:
    memory = [zeroed_bytes(32 * 2**20), zeroed_bytes(48 * 2**20 + 5)]
    before = resident_bytes()
    populate(memory).join()
    assert resident_bytes() - before > 72 * 2**20
    assert not any(piece.any() for piece in memory)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own way of telling what is mapped")
def test_a_mapped_weight_gives_its_memory_back_and_can_still_be_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file({"w": torch.rand(NUM_WEIGHT_BYTES // 4), "other": torch.ones(8)}, tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    total = float(weights["w"].sum())
    before = resident_bytes()
    assert MappedFiles().release(weights["w"])
    assert before - resident_bytes() > NUM_WEIGHT_BYTES * 0.9
    assert float(weights["w"].sum()) == total
    assert float(weights["other"].sum()) == 8


def test_memory_of_this_process_is_left_alone() -> None:
    weight = torch.ones(NUM_WEIGHT_BYTES // 4)
    assert not MappedFiles().release(weight)
    assert float(weight.sum()) == NUM_WEIGHT_BYTES / 4


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")


def check_large_blocks_are_given_back_at_once_though_their_neighbours_are_in_use() -> None:
    torch.ones(31 * 2**20, dtype=torch.uint8)  # once freed, glibc keeps what is smaller than that
    with large_blocks_given_back():
        blocks = [torch.ones(2 * 2**20, dtype=torch.uint8) for _ in range(64)]
        before = resident_bytes()
        del blocks[::2]
        assert before - resident_bytes() > 60 * 2**20
    assert len(blocks) == 32


def check_small_blocks_are_given_back_at_the_end_though_their_neighbours_are_in_use() -> None:
    with large_blocks_given_back():
        blocks = [torch.ones(2**16, dtype=torch.uint8) for _ in range(2048)]
        before = resident_bytes()
        del blocks[::2]
    assert before - resident_bytes() > 50 * 2**20
    assert len(blocks) == 1024


def check_blocks_are_kept_for_the_next_step_once_the_model_is_loaded() -> None:
    with large_blocks_given_back():
        assert has_a_mapping_of_its_own(torch.ones(3 * 2**20, dtype=torch.uint8))
    assert not has_a_mapping_of_its_own(torch.ones(3 * 2**20, dtype=torch.uint8))


def has_a_mapping_of_its_own(block: torch.Tensor) -> bool:
    """What glibc has noted in front of the block."""
    size_and_flags = ctypes.c_size_t.from_address(block.data_ptr() - ctypes.sizeof(ctypes.c_size_t)).value
    return bool(size_and_flags & 2)


@pytest.mark.slow
@needs_glibc
@pytest.mark.parametrize(
    "check",
    [
        check_large_blocks_are_given_back_at_once_though_their_neighbours_are_in_use,
        check_small_blocks_are_given_back_at_the_end_though_their_neighbours_are_in_use,
        check_blocks_are_kept_for_the_next_step_once_the_model_is_loaded,
    ],
)
def test_memory_of_the_c_library_in_a_process_without_a_past(check: Callable[[], None]) -> None:
    """What other tests have freed would be handed out first."""
    process = multiprocessing.get_context("spawn").Process(target=check)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_weights_are_loaded_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with large_blocks_given_back():
        assert torch.ones(4).sum() == 4
