"""The native attention kernel as a Python object: finds or builds the library, and calls it.

Knows the C interface of `attention.cpp` and which threads it may use; nothing of models, requests or torch's tensors
but their addresses. A machine without the library goes on without it: `load_library` says why, once, in the log.
"""

import ctypes
import logging
from ctypes import c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

from engine.kernels.build import library_path

logger = logging.getLogger(__name__)

# The runtimes whose threads torch may be using; each has GOMP_parallel.
_OPENMP_NAMES = ("libgomp", "libiomp5", "libomp")


class Step(ctypes.Structure):
    """`struct Step` of attention.cpp: where the tokens of a step lie."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("num_seqs", c_int64),
        ("block_size", c_int64),
        ("table_stride", c_int64),
        ("query_start", c_void_p),
        ("seq_lens", c_void_p),
        ("block_tables", c_void_p),
        ("slots", c_void_p),
    )


class Layer(ctypes.Structure):
    """`struct Layer` of attention.cpp: one layer's cache."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("num_kv_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("is_bf16", c_int64),
    )


class Call(ctypes.Structure):
    """`struct Call` of attention.cpp: the tensors of one layer in one step, and how it attends."""

    _fields_ = (
        ("step", c_void_p),
        ("layer", c_void_p),
        ("query", c_void_p),
        ("new_keys", c_void_p),
        ("new_values", c_void_p),
        ("out", c_void_p),
        ("query_token", c_int64),
        ("query_head", c_int64),
        ("key_token", c_int64),
        ("key_head", c_int64),
        ("value_token", c_int64),
        ("value_head", c_int64),
        ("num_heads", c_int64),
        ("window", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("sinks", c_void_p),
    )


class Team(ctypes.Structure):
    """`struct Team` of attention.cpp: the threads that help."""

    _fields_ = (("parallel", c_void_p), ("num_threads", c_int64))


# By the numbers that the library has for them; each includes those before it.
INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512-bf16")


class Library:
    """The loaded library, and the instruction set that it uses: this CPU's best, or a lesser one by its number."""

    def __init__(self, path: Path, level: int | None = None) -> None:
        """Raises `OSError` or `AttributeError` for a file that is not the library."""
        functions = ctypes.CDLL(str(path))
        functions.orcinus_best_level.restype = c_int64
        functions.orcinus_attend.restype = c_int64
        functions.orcinus_attend.argtypes = (c_void_p, c_void_p, c_int64)
        self._attend = functions.orcinus_attend
        best: int = functions.orcinus_best_level()
        self._level = best if level is None else min(level, best)
        self.instruction_set = INSTRUCTION_SETS[self._level]

    def attend(self, call: Call, team: Team) -> None:
        """Write the step's keys and values, then attend. The memory that `call` names must be alive until then."""
        if self._attend(ctypes.addressof(call), ctypes.addressof(team), self._level):
            raise MemoryError("no memory for the attention of this step")


@cache
def load_library() -> Library | None:
    """The library of this machine, built now if need be; None where there is none. Never raises."""
    try:
        path = library_path()
        library = Library(path)
    except (OSError, AttributeError, RuntimeError) as error:
        logger.warning("attention runs without its native kernel: %s", error)
        return None
    logger.debug("native kernels: %s", path)
    return library


@cache
def gomp_parallel() -> int | None:
    """Address of the function that runs another one in every thread of torch's OpenMP runtime; None without one."""
    for path in _openmp_libraries():
        try:
            function = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, c_void_p).value
    return None


def _openmp_libraries() -> list[str]:
    """Files of OpenMP runtimes in this process, torch's own first."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    found = [path for path in paths if Path(path).name.startswith(_OPENMP_NAMES)]
    return sorted(found, key=lambda path: ("/torch/lib/" not in path, path))


def team_of(num_threads: int) -> Team:
    """The OpenMP threads of this process, or the calling one alone where they cannot be shared."""
    return Team(gomp_parallel(), num_threads)
