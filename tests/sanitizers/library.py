"""The native kernels as a sanitizer's compiler makes them, and a pytest plugin that puts them in the place of ours.

`python -m pytest -p tests.sanitizers.library ...` with the library's path in `KERNELS_UNDER_TEST`, in a process that
has the sanitizer's runtime loaded before everything else. Knows compilers and their flags; nothing of what is tested.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from orcinus.engine.kernels import build

LIBRARY = "KERNELS_UNDER_TEST"


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


if LIBRARY in os.environ:
    build.LIBRARY_NAME = os.environ[LIBRARY]  # an absolute path, which is taken as it is
