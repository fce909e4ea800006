"""The Triton kernels where there is no GPU: they compute the right numbers, and GPUs' compilers take them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

pytestmark = pytest.mark.slow  # 40 s of compiling and interpreting

HERE = Path(__file__).parent
ROOT = HERE.parents[3]


def run_python(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Triton reads its settings when it is imported, and others import it: a process for each."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_the_kernels_compute_what_attention_is_defined_as() -> None:
    """Interpreted, unless there is a GPU to run them."""
    environment = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    cases = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_cases.py"), **environment)
    assert cases.returncode == 0, cases.stdout + cases.stderr
    assert "passed" in cases.stdout
    assert "skipped" not in cases.stdout


# In KiB, what one program may have of a multiprocessor's shared memory.
@pytest.mark.parametrize(("capability", "shared"), [(86, 99), (90, 227)])
def test_the_kernels_compile_for_gpus_that_are_not_here(capability: int, shared: int, tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not, and knows no limits."""
    compiled = run_python(str(HERE / "triton_compile.py"), str(capability), TRITON_CACHE_DIR=str(tmp_path))
    assert compiled.returncode == 0, compiled.stdout + compiled.stderr
    used = [int(line.split()[-1]) for line in compiled.stdout.splitlines()]
    assert len(used) > 4
    assert max(used) <= shared * 1024
