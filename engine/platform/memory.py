"""Large pieces of memory on a CPU, in huge pages where the system has them for those who ask.

For what is read from one end to the other at each step: weights, the KV cache. The pages are zeros, and cost memory
only once they are written to or populated.
"""

import ctypes
import mmap
import sys
import threading
from collections.abc import Sequence

import torch

_HUGE_PAGE = 2 * 2**20
_MADV_POPULATE_WRITE = 23  # Linux 5.14


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


def populate(tensors: Sequence[torch.Tensor]) -> threading.Thread:
    """Have the system give the memory of all tensors, the front of each first, in a thread of its own.

    Otherwise a step that is the first to write to many pages waits for all of them, and a machine that has less than
    was reserved finds out under load.
    """
    thread = threading.Thread(target=_populate, args=(list(tensors),), name="populate", daemon=True)
    thread.start()
    return thread


def _populate(tensors: list[torch.Tensor]) -> None:
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is None or not sys.platform.startswith("linux"):
        return
    for offset in range(0, max(tensor.nbytes for tensor in tensors), _HUGE_PAGE):
        for tensor in tensors:
            first = (tensor.data_ptr() + offset) // mmap.PAGESIZE * mmap.PAGESIZE
            size = min(_HUGE_PAGE, tensor.nbytes - offset)
            if size > 0 and advise(ctypes.c_void_p(first), ctypes.c_size_t(size), _MADV_POPULATE_WRITE) != 0:
                return  # a system that cannot do it beforehand does it when the memory is written to
