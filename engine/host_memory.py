"""Large pieces of memory on a CPU, in huge pages where the system has them for those who ask.

What is read from one end to the other at each step (weights, the KV cache) takes a third longer in pages of 4 KiB. The
pages are zeros, and cost memory only once they are written to.
"""

import ctypes
import mmap

import torch

_HUGE_PAGE = 2 * 2**20


def zeroed_bytes(size: int) -> torch.Tensor:
    """(size,) uint8, aligned to a page."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {size} bytes: {error}") from error
    if size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def give_back_freed() -> None:
    """Return to the system what was freed and is still kept for reuse, where the C library can do that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
