"""The native kernels as a sanitizer's compiler makes them, and a pytest plugin that puts them in the place of ours, and
tries at most twelve cases of a test.

`python -m pytest -p tests.sanitizers.library ...` with the library's path in `KERNELS_UNDER_TEST`, in a process that
has the sanitizer's runtime loaded before everything else. Knows compilers and their flags; nothing of what is tested.
"""

import os
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from orcinus.engine.kernels import build

LIBRARY = "KERNELS_UNDER_TEST"
_MAX_CASES = 12  # of each test


@dataclass(frozen=True, slots=True)
class Sanitizer:
    """Says what GCC calls it, its runtime, and the settings of that."""

    name: str
    runtime: str
    options: dict[str, str]

    @property
    def flags(self) -> tuple[str, ...]:
        """Ours, but optimized less: the optimizer takes four times as long over what sanitizers add."""
        plain = [flag for flag in build.FLAGS if flag not in ("-O2", "-Wall", "-Wextra")]
        return (*plain, "-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={self.name}", "-fno-sanitize-recover=all")


# Python keeps memory until it ends. A thread of Python's or torch's was not made by this compiler: what these do among
# themselves looks like a race, and only reports that name our sources count.
ADDRESS = Sanitizer("address,undefined", "libasan.so", {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1"})
THREAD = Sanitizer("thread", "libtsan.so", {"TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0"})


def compiler() -> str | None:
    """The one that the project would use."""
    return os.environ.get("CXX") or shutil.which("g++")


def runtime_of(sanitizer: Sanitizer) -> Path | None:
    """The file to load first; None where the compiler has none."""
    if (found := compiler()) is None:
        return None
    asked = [*found.split(), f"-print-file-name={sanitizer.runtime}"]
    path = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    return path if path.is_absolute() and path.exists() else None


def compile_with(flags: tuple[str, ...], target: Path) -> None:
    """Compile the sources, all at once. Raises `RuntimeError` with the first of what the compiler says."""
    found = compiler()
    assert found is not None
    sources = [str(build.CSRC / name) for name in build.SOURCES]
    command = [*found.split(), *flags, f'-DORCINUS_SOURCE="{build.source_hash()}"', *sources, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[:5000])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test with many cases keep some: the first, the last, and those between them evenly spread."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = {item for group in cases.values() for item in evenly(group, _MAX_CASES)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def evenly(items: list[pytest.Item], count: int) -> list[pytest.Item]:
    if len(items) <= count:
        return items
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


if LIBRARY in os.environ:
    build.LIBRARY_NAME = os.environ[LIBRARY]  # an absolute path, which is taken as it is
