"""The Triton sampler where there is no GPU: it chooses the right tokens, and GPUs' compilers take its kernels."""

from pathlib import Path

import pytest
import torch

from tests.unit.engine.attention.test_triton_backend import run_python

pytest.importorskip("triton")

pytestmark = pytest.mark.slow  # of compiling and interpreting

HERE = Path(__file__).parent


def test_the_kernels_choose_what_sampling_is_defined_as() -> None:
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
    assert len(used) >= 9
    assert max(used) <= shared * 1024
