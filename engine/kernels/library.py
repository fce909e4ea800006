"""The native kernels as a Python object: finds or builds the library, and calls it.

Knows the C interface of the sources and which threads it may use; nothing of models, requests or torch's tensors
but their addresses. A machine without the library goes on without it: `load_library` says why, once, in the log.
"""

import ctypes
import logging
from collections.abc import Sequence
from ctypes import addressof, c_int64, c_void_p
from functools import cache
from pathlib import Path

from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.structures import (
    Attention,
    BlockRows,
    Convolution,
    DecoderCall,
    DeltaRule,
    GroupedRows,
    Linear,
    Logprobs,
    Mamba2,
    PlainProduct,
    Sampling,
    SelectiveScan,
    Team,
    check_layouts,
)

logger = logging.getLogger(__name__)

# The runtimes whose threads torch may be using; each has GOMP_parallel.
_OPENMP_NAMES = ("libgomp", "libiomp5", "libomp")


# By the numbers that the library has for them; each includes those before it.
INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512-bf16", "amx")
# What multiplies weights in groups, by the numbers of grouped.h.
GROUPED_KERNELS = ("generic", "avx2", "avx2-vnni", "avx512", "amx", "arm-dot")
# The most that kernels may use: an instruction set by its number, and whether VNNI. The last is all there is.
KERNEL_CHOICES = {
    "generic": (0, False),
    "avx2": (1, False),
    "avx2-vnni": (1, True),
    "avx512": (2, True),
    "avx512-bf16": (3, True),
    "amx": (4, True),
}
_AVX2_LEVEL, _UNITS_LEVEL = 1, 4
_DOTS, _MATRIX_UNITS = 3, 4  # AVX512_DOTS and MATRIX_UNITS_KERNEL of linear.h
_UNIT_LANES = 16  # of tile_shapes.h


class Library:
    """The loaded library. It uses the best instruction set of this CPU, or a lesser one by its number.

    The memory that a structure names must be alive until the call returns.
    """

    def __init__(self, path: Path, level: int | None = None, *, has_vnni: bool = True) -> None:
        """Load the library. Raises `OSError`, `AttributeError` or `RuntimeError` for a file that is another one."""
        functions = ctypes.CDLL(str(path))
        check_layouts(functions)
        for name in ("best_level", "plain_kernel", "has_matrix_units", "grouped_kernel"):
            getattr(functions, f"orcinus_{name}").restype = c_int64
        for name in ("attend", "pack", "linear", "quantize_groups", "grouped_linear", "expert_linear"):
            getattr(functions, f"orcinus_{name}").restype = c_int64
        for name in ("decode", "sample", "logprobs"):
            getattr(functions, f"orcinus_{name}").restype = c_int64
        functions.orcinus_attend.argtypes = (c_void_p, c_void_p, c_int64)
        functions.orcinus_pack.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p)
        functions.orcinus_linear.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p)
        functions.orcinus_grouped_kernel.argtypes = (c_int64, c_int64)
        functions.orcinus_plain_kernel.argtypes = (c_int64, c_int64, c_int64)
        functions.orcinus_quantize_groups.argtypes = functions.orcinus_pack.argtypes
        functions.orcinus_grouped_linear.argtypes = functions.orcinus_linear.argtypes
        functions.orcinus_expert_linear.argtypes = (
            *(c_void_p, c_int64, c_void_p, c_void_p),
            *(c_int64, c_void_p, c_int64, c_void_p),
        )
        functions.orcinus_pack_groups.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_void_p)
        functions.orcinus_pack_blocks.argtypes = functions.orcinus_pack_groups.argtypes
        functions.orcinus_unpack_groups.argtypes = (c_void_p, c_void_p, c_int64, c_void_p, c_void_p)
        functions.orcinus_decode.argtypes = (c_void_p, c_void_p, c_int64)
        functions.orcinus_sample.argtypes = (c_void_p, c_void_p, c_int64)
        functions.orcinus_logprobs.argtypes = (c_void_p, c_void_p, c_int64)
        for name in ("pack_groups", "pack_blocks", "unpack_groups"):
            getattr(functions, f"orcinus_{name}").restype = None
        for name in ("product", "convolve", "delta_rule", "mamba2", "selective_scan"):
            getattr(functions, f"orcinus_{name}").argtypes = (c_void_p, c_void_p, c_int64)
            getattr(functions, f"orcinus_{name}").restype = None
        self._functions = functions
        self._choose(len(INSTRUCTION_SETS) if level is None else level, has_vnni=has_vnni)
        self._own_threads = ctypes.cast(functions.orcinus_parallel, c_void_p).value
        self.team = Team(gomp_parallel(), 1)

    def _choose(self, level: int, *, has_vnni: bool) -> None:
        functions = self._functions
        self._level = min(level, functions.orcinus_best_level())
        self.instruction_set = INSTRUCTION_SETS[self._level]
        self._plain_kernels = [functions.orcinus_plain_kernel(self._level, is_int8, has_vnni) for is_int8 in (0, 1)]
        self.has_plain_linear = min(self._plain_kernels) >= 0
        self.has_matrix_units = self._level >= _UNITS_LEVEL and bool(functions.orcinus_has_matrix_units())
        self.has_decoder = self._level >= _AVX2_LEVEL
        self.grouped_kernel: int = functions.orcinus_grouped_kernel(self._level, has_vnni)

    def plain_kernel(self, num_lanes: int, *, is_int8: bool) -> int:
        """Return the number of what multiplies a plain weight of so many lanes of 32 bits; see linear.h."""
        kernel: int = self._plain_kernels[is_int8]
        return _DOTS if kernel == _MATRIX_UNITS and num_lanes % _UNIT_LANES else kernel

    def use_kernels(self, choice: str) -> None:
        """Use nothing beyond one of `KERNEL_CHOICES` from now on; what this CPU does not have is passed over."""
        level, has_vnni = KERNEL_CHOICES[choice]
        self._choose(level, has_vnni=has_vnni)

    def use_threads(self, count: int, *, own: bool) -> None:
        """Choose the threads that help from now on: `count` of the library's own, or of torch's OpenMP runtime.

        Two kinds that take turns keep each other off the cores, so they should be those that do most of a step.
        """
        self.team = Team(self._own_threads if own else gomp_parallel(), count)

    def attend(self, call: Attention) -> None:
        """Write the step's keys and values, then attend. Raises `MemoryError`."""
        if self._functions.orcinus_attend(addressof(call), addressof(self.team), self._level):
            raise MemoryError("no memory for the attention of this step")

    def pack(self, linear: Linear, weight: int, stride: int, count: int, *, first: int, spread: int) -> None:
        """Pack `count` rows of a bfloat16 weight at an address into columns `first` and on; see `column_of`."""
        if self._functions.orcinus_pack(addressof(linear), weight, stride, count, first, spread, addressof(self.team)):
            raise MemoryError("no memory to pack a weight")

    def linear(self, linear: Linear, x: int, stride: int, count: int, out: int) -> None:
        """Multiply `count` rows of bfloat16 at one address into (count, out_features) at another."""
        if self._functions.orcinus_linear(addressof(linear), x, stride, count, out, addressof(self.team)):
            raise MemoryError(f"no memory for a product of {count} rows")

    def pack_groups(self, linear: Linear, rows: GroupedRows, *, first: int, spread: int) -> None:
        """Pack rows that are in groups already into columns `first` and on; see `column_of`."""
        functions, team = self._functions, addressof(self.team)
        functions.orcinus_pack_groups(addressof(linear), addressof(rows), first, spread, team)

    def pack_blocks(self, linear: Linear, rows: BlockRows, *, first: int, spread: int) -> None:
        """Pack rows of a file's blocks into columns `first` and on; see `column_of`."""
        functions, team = self._functions, addressof(self.team)
        functions.orcinus_pack_blocks(addressof(linear), addressof(rows), first, spread, team)

    def quantize_groups(self, linear: Linear, weight: int, stride: int, count: int, *, first: int, spread: int) -> None:
        """Pack `count` rows of a bfloat16 weight at an address, in groups with scales of float16."""
        functions, team = self._functions, addressof(self.team)
        if functions.orcinus_quantize_groups(addressof(linear), weight, stride, count, first, spread, team):
            raise MemoryError("no memory to quantize a weight")

    def unpack_groups(self, linear: Linear, columns: int, count: int, out: int) -> None:
        """Write `count` columns, numbered by int64 at an address, as rows of float32 at another."""
        self._functions.orcinus_unpack_groups(addressof(linear), columns, count, out, addressof(self.team))

    def grouped_linear(self, linear: Linear, x: int, stride: int, count: int, out: int) -> None:
        """Multiply as `linear` does, with a weight in groups, on any CPU."""
        functions, team = self._functions, addressof(self.team)
        if functions.orcinus_grouped_linear(addressof(linear), x, stride, count, out, team):
            raise MemoryError(f"no memory for a product of {count} rows")

    def expert_linear(
        self, linear: Linear, x: int, stride: int, out: int, *, columns: int, starts: Sequence[int], is_gated: bool
    ) -> None:
        """Multiply rows `starts[i]` to `starts[i + 1]` of bfloat16 at one address with columns i of a weight in groups.

        Each has `columns`, a multiple of 32, of the weight's; (count, columns) go to another address, or half as many
        where they are gated. Raises `MemoryError`.
        """
        ends = (c_int64 * len(starts))(*starts)
        functions, team = self._functions, addressof(self.team)
        if functions.orcinus_expert_linear(addressof(linear), columns, ends, x, stride, out, is_gated, team):
            raise MemoryError(f"no memory for products of {starts[-1]} rows")

    def product(self, call: PlainProduct) -> None:
        """Multiply rows with a plain weight: each number is a function of its row and its column alone."""
        self._functions.orcinus_product(addressof(call), addressof(self.team), self._level)

    def convolve(self, call: Convolution) -> None:
        """Convolve each channel of a step's rows, from the states of its sequences on, which it takes further."""
        self._functions.orcinus_convolve(addressof(call), addressof(self.team), self._level)

    def delta_rule(self, call: DeltaRule) -> None:
        """Take the states of a step's sequences through their tokens by the gated delta rule."""
        self._functions.orcinus_delta_rule(addressof(call), addressof(self.team), self._level)

    def mamba2(self, call: Mamba2) -> None:
        """Take the states of a step's sequences through their tokens by the rule of Mamba-2."""
        self._functions.orcinus_mamba2(addressof(call), addressof(self.team), self._level)

    def selective_scan(self, call: SelectiveScan) -> None:
        """Take the states of a step's sequences through their tokens by the rule of Mamba."""
        self._functions.orcinus_selective_scan(addressof(call), addressof(self.team), self._level)

    def sample(self, call: Sampling) -> None:
        """Choose a token of each row of logits. Raises `MemoryError`."""
        if self._functions.orcinus_sample(addressof(call), addressof(self.team), self._level):
            raise MemoryError(f"no memory to sample {call.num_rows} rows")

    def logprobs(self, call: Logprobs) -> None:
        """Find log-probabilities of rows of logits. Raises `MemoryError`."""
        if self._functions.orcinus_logprobs(addressof(call), addressof(self.team), self._level):
            raise MemoryError(f"no memory for log-probabilities of {call.num_rows} rows")

    def decode(self, call: DecoderCall) -> None:
        """Run the decoder layers of one step. Raises `MemoryError`."""
        if self._functions.orcinus_decode(addressof(call), addressof(self.team), self._level):
            raise MemoryError("no memory for the layers of this step")


def use_kernels(choice: str) -> None:
    """Let the kernels of this process use nothing beyond one of `KERNEL_CHOICES`."""
    if (library := load_library()) is not None:
        library.use_kernels(choice)


@cache
def load_library() -> Library | None:
    """Return the library of this machine, built now if need be, or None if there is none. Never raises."""
    try:
        path = library_path()
        library = Library(path)
    except (OSError, AttributeError, RuntimeError) as error:
        logger.warning("there are no native kernels: %s; without them a CPU is several times slower", error)
        return None
    logger.debug("native kernels: %s", path)
    return library


@cache
def gomp_parallel() -> int | None:
    """Return the address of the function that runs another one in every thread of torch's OpenMP runtime, or None."""
    for path in _openmp_libraries():
        try:
            function = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, c_void_p).value
    return None


def _openmp_libraries() -> list[str]:
    """Return the files of OpenMP runtimes in this process, torch's own first."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    found = [path for path in paths if Path(path).name.startswith(_OPENMP_NAMES)]
    return sorted(found, key=lambda path: ("/torch/lib/" not in path, path))
