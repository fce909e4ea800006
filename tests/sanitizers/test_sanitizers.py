"""The native kernels' sources: no warning, and their own tests once more with the sanitizers of the compiler looking.

Where the compiler has no sanitizers the tests say so. The kernels are compiled twice more and their tests run slower:
a few minutes in all.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orcinus.engine.kernels import build
from tests.sanitizers.library import ADDRESS, LIBRARY, THREAD, Sanitizer, compile_with, compiler, runtime_of
from tests.server_process import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(compiler() is None or sys.platform != "linux", reason="there is no g++ here, or no Linux"),
]

UNIT = "tests/unit/engine"
ALL_KERNELS = (f"{UNIT}/kernels", f"{UNIT}/attention", f"{UNIT}/cpu", f"{UNIT}/sampling/test_native.py")
# Those that compile, fork, or are about other libraries.
NOT_OURS = "not compiler and not library and not forked and not triton and not cuda and not torch_has"
THREADS = (f"{UNIT}/kernels/test_pool.py",)


def needs(sanitizer: Sanitizer) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        runtime_of(sanitizer) is None, reason=f"the compiler has no runtime of -fsanitize={sanitizer.name}"
    )


def at_fixed_addresses() -> list[str]:
    """Return what starts a command without addresses at random, for which runtimes of older compilers have no room."""
    return ["setarch", platform.machine(), "--addr-no-randomize"] if shutil.which("setarch") else []


def run_tests(sanitizer: Sanitizer, folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """The tests in a process of their own, with the kernels that this sanitizer watches."""
    library = folder / "kernels.so"
    compile_with(sanitizer.flags, library)
    # With the library of C++ from the beginning, or the runtime aborts at the first exception that torch throws.
    preloaded = f"{runtime_of(sanitizer)} libstdc++.so.6"
    environment = {**os.environ, **sanitizer.options, "LD_PRELOAD": preloaded, LIBRARY: str(library)}
    pytest_run = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.sanitizers.library",
        "-p",
        "no:cacheprovider",
        "--capture=sys",
    ]
    options = ["--hypothesis-profile", "quick", "--timeout", "900", "-k", NOT_OURS]
    command = [*at_fixed_addresses(), *pytest_run, *options, *tests]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_sources_give_no_warning(tmp_path: Path) -> None:
    assert {"-Wall", "-Wextra"} <= set(build.FLAGS)
    compile_with((*build.FLAGS, "-Werror"), tmp_path / "kernels.so")


@needs(ADDRESS)
def test_no_kernel_leaves_its_memory_or_does_what_is_undefined(tmp_path: Path) -> None:
    done = run_tests(ADDRESS, tmp_path, *ALL_KERNELS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]


@needs(THREAD)
def test_threads_of_our_own_do_not_race(tmp_path: Path) -> None:
    done = run_tests(THREAD, tmp_path, *THREADS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]


@needs(ADDRESS)
def test_a_write_past_the_end_would_be_found(tmp_path: Path) -> None:
    """With the same flags and the same runtime, in the same way."""
    source = tmp_path / "broken.cpp"
    seen = '__attribute__((visibility("default")))'  # our flags hide what does not ask to be seen
    source.write_text(f'extern "C" {seen} void write_at(char* memory, long place) {{ memory[place] = 1; }}\n')
    library = tmp_path / "broken.so"
    found = compiler()
    assert found is not None
    subprocess.run([*found.split(), *ADDRESS.flags, str(source), "-o", str(library)], check=True)
    script = f"""
import ctypes, torch
memory = torch.zeros(100, dtype=torch.uint8)
write_at = ctypes.CDLL({str(library)!r}).write_at
write_at(ctypes.c_void_p(memory.data_ptr()), ctypes.c_long(99))
print("within", flush=True)
write_at(ctypes.c_void_p(memory.data_ptr()), ctypes.c_long(100))
"""
    environment = {**os.environ, **ADDRESS.options, "LD_PRELOAD": str(runtime_of(ADDRESS))}
    done = subprocess.run(
        [*at_fixed_addresses(), sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "within\n"
    assert "heap-buffer-overflow" in done.stderr
