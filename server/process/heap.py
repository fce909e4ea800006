"""How the C library keeps this process' heap. Knows nothing of what is in it."""

import contextlib
import ctypes

_MAX_ARENAS = 2
_LARGE_BYTES = 2**20
# The numbers by which mallopt(3) knows its parameters.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def give_freed_memory_back() -> None:
    """Keep little of what a burst of large requests took, where the C library is glibc.

    It would give each thread an arena of its own, and keep in all of them what was freed.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, _MAX_ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
