"""Weights that are mapped from a file: giving their memory back once a copy of them is used instead.

A mapping lasts as long as any tensor in it, and what was read of it counts as this process's memory. On Linux the pages
of a tensor can be let go by themselves; were they read again, they would come from the file.
"""

import ctypes
import mmap
import sys
from pathlib import Path

import torch

_MADV_DONTNEED = 4
_PAGE = mmap.PAGESIZE


class MappedFiles:
    """The address ranges of this process that are mapped from files, as of now."""

    def __init__(self) -> None:
        self._ranges = list(_file_ranges()) if sys.platform == "linux" else []

    def let_go(self, weight: torch.Tensor) -> bool:
        """Drop the whole pages inside a weight that nobody will read soon. False if it is not from a file."""
        first, end = weight.data_ptr(), weight.data_ptr() + weight.nbytes
        if not any(low <= first and end <= high for low, high in self._ranges):
            return False
        first, end = -(-first // _PAGE) * _PAGE, end // _PAGE * _PAGE
        if first < end:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_DONTNEED)
        return True


def _file_ranges() -> list[tuple[int, int]]:
    """Address ranges of /proc/self/maps that have an inode."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            low, high = addresses.split("-")
            ranges.append((int(low, 16), int(high, 16)))
    return ranges
