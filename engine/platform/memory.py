"""The host's memory in large pieces: taken for weights and the KV cache, and given back where weights were mapped.

What a step reads from one end to the other is best in huge pages. Knows nothing of models and devices.
"""

import ctypes
import mmap
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

_HUGE_PAGE = 2 * 2**20
_MADV_DONTNEED = 4
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_REST = 3  # times as long as populating a piece took
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # of glibc, which adjusts its own up to that


def zeroed_bytes(size: int) -> torch.Tensor:
    """Return (size,) uint8 that begins at a page, in huge pages where the system gives them on request.

    The pages cost memory only once they are written to or populated. Raises `MemoryError`.
    """
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {size} bytes: {error}") from error
    if size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def populate(tensors: Sequence[torch.Tensor]) -> threading.Thread:
    """Start a thread that has the system give the memory of all tensors, the front of each first.

    Otherwise a step that is the first to write to many pages waits for all of them, and a machine that has less than
    was reserved finds out under load. The thread rests most of the time: steps need the cores it would take, half a
    minute where a virtual machine gets its memory from the host only now.
    """
    thread = threading.Thread(target=_populate, args=(list(tensors),), name="populate", daemon=True)
    thread.start()
    return thread


def _populate(tensors: list[torch.Tensor]) -> None:
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is None or not sys.platform.startswith("linux"):
        return
    for offset in range(0, max((tensor.nbytes for tensor in tensors), default=0), _HUGE_PAGE):
        for tensor in tensors:
            began = time.monotonic()
            first = (tensor.data_ptr() + offset) // mmap.PAGESIZE * mmap.PAGESIZE
            size = min(_HUGE_PAGE, tensor.nbytes - offset)
            if size > 0 and advise(ctypes.c_void_p(first), ctypes.c_size_t(size), _MADV_POPULATE_WRITE) != 0:
                return  # a system that cannot do it beforehand does it when the memory is written to
            time.sleep(_REST * (time.monotonic() - began))


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Have the C library give memory of a megabyte or more back as soon as it is freed, as long as this is open.

    While a model is loaded, each weight is freed once its converted or packed form is there. Pieces of that size would
    stay with the process, between others that are in use. At the end the rest that is free is given back, and from then
    on the library has the limits that its own adjustment to large pieces leads to. Does nothing where it is not glibc.
    """
    libc = ctypes.CDLL(None)
    if not all(hasattr(libc, name) for name in ("mallopt", "malloc_trim")):
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)


class MappedFiles:
    """The address ranges that are mapped from files into this process, as of when this is first asked to release one.

    A mapping lasts as long as any tensor in it, and what was read of it counts as this process's memory. On Linux the
    pages of one tensor can be let go by themselves; were they read again, they would come from the file.
    """

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        return list(_file_ranges()) if sys.platform == "linux" else []

    def release(self, weight: torch.Tensor) -> bool:
        """Drop the whole pages inside a weight whose copy is used instead. Return False if it is not from a file."""
        return self.release_bytes(weight.data_ptr(), weight.nbytes)

    def release_bytes(self, address: int, size: int) -> bool:
        """Drop the whole pages among `size` bytes at an address. Return False if they are not from a file."""
        first, end = address, address + size
        if not any(low <= first and end <= high for low, high in self._ranges):
            return False
        first, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_DONTNEED)
        return True


def _file_ranges() -> Iterator[tuple[int, int]]:
    """Yield the ranges of /proc/self/maps that have an inode."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            low, high = addresses.split("-")
            yield int(low, 16), int(high, 16)
