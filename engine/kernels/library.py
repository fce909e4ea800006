"""The native kernels as a Python object: finds or builds the library, and calls it.

Knows the C interface of the sources and which threads it may use; nothing of models, requests or torch's tensors
but their addresses. A machine without the library goes on without it: `load_library` says why, once, in the log.
"""

import ctypes
import logging
from ctypes import addressof, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

from orcinus.engine.kernels.build import library_path

logger = logging.getLogger(__name__)

# The runtimes whose threads torch may be using; each has GOMP_parallel.
_OPENMP_NAMES = ("libgomp", "libiomp5", "libomp")


class Step(ctypes.Structure):
    """`struct Step` of common.h: where the tokens of a step lie."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("num_seqs", c_int64),
        ("block_size", c_int64),
        ("table_stride", c_int64),
        ("query_start", c_void_p),
        ("seq_lens", c_void_p),
        ("block_tables", c_void_p),
        ("slots", c_void_p),
        ("in_one_part", c_int64),
    )


class Cache(ctypes.Structure):
    """`struct Cache` of common.h: one layer's keys and values."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("num_kv_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("is_bf16", c_int64),
    )


class Attention(ctypes.Structure):
    """`struct Attention` of common.h: the tensors of one layer in one step, and how it attends."""

    _fields_ = (
        ("step", c_void_p),
        ("cache", c_void_p),
        ("query", c_void_p),
        ("new_keys", c_void_p),
        ("new_values", c_void_p),
        ("out", c_void_p),
        ("out_token", c_int64),
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


class Linear(ctypes.Structure):
    """`struct Linear` of linear.h: packed weights."""

    _fields_ = (
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("sums", c_void_p),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("is_int8", c_int64),
    )


class DecoderLayer(ctypes.Structure):
    """`struct DecoderLayer` of decoder.cpp: the weights of one layer."""

    _fields_ = (
        ("qkv", c_void_p),
        ("attention_out", c_void_p),
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("attention_eps", c_float),
        ("mlp_eps", c_float),
        ("query_eps", c_float),
        ("key_eps", c_float),
        ("hidden_size", c_int64),
        ("num_heads", c_int64),
        ("head_dim", c_int64),
    )


class DecoderCall(ctypes.Structure):
    """`struct DecoderCall` of decoder.cpp: consecutive layers in one step."""

    _fields_ = (
        ("layers", c_void_p),
        ("attentions", c_void_p),
        ("num_layers", c_int64),
        ("hidden", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("out", c_void_p),
        ("hidden_stride", c_int64),
        ("rotary_stride", c_int64),
        ("rotary_dim", c_int64),
    )


class PlainProduct(ctypes.Structure):
    """`struct PlainProduct` of product.cpp: rows times a weight as a model has it."""

    _fields_ = (
        ("x", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("out", c_void_p),
        ("count", c_int64),
        ("in_features", c_int64),
        ("columns", c_int64),
        ("x_stride", c_int64),
        ("in_stride", c_int64),
        ("column_stride", c_int64),
        ("out_stride", c_int64),
        ("is_bf16", c_int64),
    )


class Team(ctypes.Structure):
    """`struct Team` of common.h: the threads that help."""

    _fields_ = (("parallel", c_void_p), ("num_threads", c_int64))


# By the numbers that the library has for them; each includes those before it.
INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512-bf16")


class Library:
    """The loaded library, and the instruction set that it uses: this CPU's best, or a lesser one by its number.

    The memory that a structure names must be alive until the call returns.
    """

    def __init__(self, path: Path, level: int | None = None) -> None:
        """Raises `OSError` or `AttributeError` for a file that is not the library."""
        functions = ctypes.CDLL(str(path))
        for name in ("best_level", "has_bf16", "has_int8", "attend", "pack", "linear", "decode", "argmax"):
            getattr(functions, f"orcinus_{name}").restype = c_int64
        functions.orcinus_attend.argtypes = (c_void_p, c_void_p, c_int64)
        functions.orcinus_argmax.argtypes = (c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p)
        functions.orcinus_pack.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p)
        functions.orcinus_linear.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p)
        functions.orcinus_decode.argtypes = (c_void_p, c_void_p, c_int64)
        functions.orcinus_product.argtypes = (c_void_p, c_void_p, c_int64)
        functions.orcinus_product.restype = None
        self._functions = functions
        best: int = functions.orcinus_best_level()
        self._level = best if level is None else min(level, best)
        self.instruction_set = INSTRUCTION_SETS[self._level]
        self.has_bf16_linear = bool(functions.orcinus_has_bf16())
        self.has_int8_linear = bool(functions.orcinus_has_int8())
        self.has_argmax = best >= INSTRUCTION_SETS.index("avx512")
        self._own_threads = ctypes.cast(functions.orcinus_parallel, c_void_p).value
        self.team = Team(gomp_parallel(), 1)

    def use_threads(self, count: int, *, own: bool) -> None:
        """Whose threads help from now on: the library's own, or those of torch's OpenMP runtime.

        Two kinds that take turns keep each other off the cores, so it should be those of whoever does most of a step.
        """
        self.team = Team(self._own_threads if own else gomp_parallel(), count)

    def attend(self, call: Attention) -> None:
        """Write the step's keys and values, then attend."""
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

    def product(self, call: PlainProduct) -> None:
        """Multiply rows with a plain weight: each number is a function of its row and its column alone."""
        self._functions.orcinus_product(addressof(call), addressof(self.team), self._level)

    def argmax(self, logits: int, count: int, width: int, stride: int, *, values: int, indices: int) -> None:
        """The largest of each row of bfloat16 (float32), and the first place where it is (int64)."""
        if self._functions.orcinus_argmax(logits, count, width, stride, values, indices, addressof(self.team)):
            raise RuntimeError("there is no argmax for this processor")

    def decode(self, call: DecoderCall) -> None:
        if self._functions.orcinus_decode(addressof(call), addressof(self.team), self._level):
            raise MemoryError("no memory for the layers of this step")


@cache
def load_library() -> Library | None:
    """The library of this machine, built now if need be; None where there is none. Never raises."""
    try:
        path = library_path()
        library = Library(path)
    except (OSError, AttributeError, RuntimeError) as error:
        logger.warning("there are no native kernels: %s", error)
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
