"""What is built to be installed elsewhere: the wheel holds the native kernels, and they ask for no new system."""

import ctypes
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from orcinus.engine.kernels import build

ROOT = Path(__file__).parents[2]
LIBRARY = "orcinus/engine/kernels/_kernels.so"
MAKEFILE = (ROOT / "Makefile").read_text()

has_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")


def newest_glibc_of(library: bytes) -> tuple[int, int]:
    """The newest version among those of the symbols that a library takes from glibc."""
    return max((int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", library))


@has_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_library_built_here_runs_with_the_glibc_that_the_wheel_promises() -> None:
    (promised,) = re.findall(r"^PLATFORM := manylinux_(\d+)_(\d+)_", MAKEFILE, flags=re.MULTILINE)
    newest = newest_glibc_of(build.library_path().read_bytes())
    assert (2, 2) <= newest <= tuple(map(int, promised))


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, and a wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@has_compiler
def test_wheel_holds_the_kernels_of_its_sources_for_any_python_3(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extract(LIBRARY, tmp_path)
    assert [name for name in names if name.endswith(".so")] == [LIBRARY]
    sources = {f"orcinus/engine/kernels/csrc/{name}" for name in build.SOURCES + build.INCLUDED}
    assert sources <= names  # for a machine of another kind, and for the hash
    source = ctypes.CDLL(str(tmp_path / LIBRARY)).orcinus_source
    source.restype = ctypes.c_char_p
    assert source().decode() == build.source_hash()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_source_distribution_has_all_that_the_wheel_is_built_from(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    sources = {f"orcinus/engine/kernels/csrc/{name}" for name in build.SOURCES + build.INCLUDED}
    assert sources | {"setup.py", "pyproject.toml", "LICENSE", "orcinus/engine/kernels/build.py"} <= names
    assert not [name for name in names if name.endswith(".so")]
