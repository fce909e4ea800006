"""Compiles the native kernels: when a wheel is built, or at first use where that did not happen.

Knows the compiler's arguments and where the result is kept; nothing of what the kernels do. Standard library alone:
setup.py runs this file before anything is installed.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
CSRC = FOLDER / "csrc"
SOURCES = (
    "attention.cpp",
    "cpu.cpp",
    "decoder.cpp",
    "grouped.cpp",
    "linear.cpp",
    "pool.cpp",
    "product.cpp",
    "recurrent.cpp",
    "sampler.cpp",
    "structures.cpp",
)
INCLUDED = (
    "attention.inl",
    "attention_int8.inl",
    "attention_int8_units.inl",
    "attention_units.inl",
    "block_packing.inl",
    "cache_write.inl",
    "common.h",
    "convolution.inl",
    "decoder.inl",
    "delta_rule.inl",
    "grouped.h",
    "grouped.inl",
    "grouped_columns.inl",
    "grouped_packing.inl",
    "grouped_units.inl",
    "grouped_vectors.inl",
    "int8_products.inl",
    "linear.h",
    "linear.inl",
    "linear_rows.inl",
    "matrix_units.inl",
    "norms.inl",
    "product.inl",
    "quantize.inl",
    "recurrent.inl",
    "rows.inl",
    "sampler.inl",
    "state_spaces.inl",
    "structures.h",
    "tile_shapes.h",
    "token_mixers.inl",
    "vectors.inl",
    "widened.inl",
)
LIBRARY_NAME = "_kernels.so"
# No -march: what a wheel ships must run on any CPU of its architecture; the instruction set is picked at run time.
FLAGS = (
    "-O2",
    "-std=c++17",
    "-shared",
    "-pthread",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vectors are passed between functions of one library alone
)
_COMPILERS = ("g++", "clang++", "c++")
_TIMEOUT_S = 1800  # one to two minutes of a core that nobody else wants


def source_hash() -> str:
    """Return a hash of the sources and of how they are compiled."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for name in SOURCES + INCLUDED:
        digest.update((CSRC / name).read_bytes())
    return digest.hexdigest()[:16]


def compile_library(target: Path) -> None:
    """Compile the sources into `target`, which appears all at once.

    Raises `RuntimeError` if there is no compiler or it fails, and `OSError` if the file cannot be written.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        raise RuntimeError("there is no C++ compiler")
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    os.close(descriptor)
    try:
        _run_compiler(compiler, unfinished)
        Path(unfinished).chmod(0o755)
        Path(unfinished).replace(target)  # at once: another process may be looking for it
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _run_compiler(compiler: str, output: str) -> None:
    command = [
        *compiler.split(),
        *FLAGS,
        f'-DORCINUS_SOURCE="{source_hash()}"',
        *(str(CSRC / name) for name in SOURCES),
        "-o",
        output,
    ]
    try:
        done = subprocess.run(  # noqa: S603 (the user's own compiler, without a shell)
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{compiler} did not run: {error}") from error
    if done.returncode != 0:
        raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[-500:]}")


def library_path() -> Path:
    """Return the library that came with the package, or one in the user's cache if that was built from other sources.

    The latter is compiled if it is not there yet. Raises what `compile_library` raises.
    """
    shipped = FOLDER / LIBRARY_NAME
    if shipped.is_file() and _source_of(shipped) == source_hash():
        return shipped
    cached = cache_folder() / f"kernels-{platform.machine()}-{source_hash()}.so"
    if not cached.is_file():
        logger.info("compiling the native kernels into %s, once", cached)
        compile_library(cached)
    return cached


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "orcinus" / "kernels"


def _source_of(library: Path) -> str:
    """Return the hash of the sources that a library was built from, an empty one if it does not tell."""
    try:
        function = ctypes.CDLL(str(library)).orcinus_source
    except (OSError, AttributeError):
        return ""
    function.restype = ctypes.c_char_p
    return str(function().decode())


if __name__ == "__main__":
    compile_library(Path(sys.argv[1]))
