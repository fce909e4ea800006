"""Products with weights in groups on Arm: the same bits as here. Needs a compiler for it, and qemu's user mode.

On Debian: `apt-get install g++-aarch64-linux-gnu qemu-user-static`.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orcinus.engine.kernels import build

ARM_COMPILER, ARM_MACHINE = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
CHECK = Path(__file__).parent / "grouped_check.cpp"
FLAGS = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC", "-fvisibility=hidden")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(ARM_COMPILER), reason=f"there is no {ARM_COMPILER}"),
    pytest.mark.skipif(not shutil.which(ARM_MACHINE), reason=f"there is no {ARM_MACHINE}"),
    pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++"),
]


def compiled(compiler: str, program: Path, *more: str) -> Path:
    sources = [CHECK, build.CSRC / "grouped.cpp", build.CSRC / "cpu.cpp"]
    command = [compiler, *FLAGS, *more, f"-I{build.CSRC}", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True, timeout=500)
    return program


def output(*command: str) -> list[str]:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=os.environ)
    return done.stdout.splitlines()


@pytest.mark.timeout(900)
def test_products_in_groups_have_the_same_bits_on_arm(tmp_path: Path) -> None:
    here = compiled("g++", tmp_path / "here")
    there = compiled(ARM_COMPILER, tmp_path / "there", "-static")
    hashes = output(str(here), "best")
    assert len(set(hashes)) == len(hashes) > 6
    assert output(str(here)) == hashes
    assert output(ARM_MACHINE, str(there)) == hashes
    assert output(ARM_MACHINE, str(there), "best") == hashes
    assert output(ARM_MACHINE, "-cpu", "cortex-a53", str(there), "best") == hashes  # which has no dot products
