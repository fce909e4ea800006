"""Threads of our own: whoever comes in time helps, nobody is missed, and nothing waits for ever."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orcinus.engine.cpu.native_linear import Kind, NativeLinear, can_multiply
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import Library, load_library

LIBRARY = load_library()
KINDS: list[Kind] = [kind for kind in ("bfloat16", "int8") if LIBRARY is not None and can_multiply(LIBRARY, kind)]
ROOT = Path(__file__).parents[4]

pytestmark = pytest.mark.skipif(not KINDS, reason="this CPU does not multiply what our kernels multiply")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


class Work:
    """A product, with one row just worth sharing, and what it comes to without help."""

    def __init__(self, seed: int, num_threads: int, num_rows: int = 1) -> None:
        library = Library(library_path())
        self.linear = NativeLinear(library, KINDS[0], [normal(640, 512, seed=seed)], [None])
        self.x = normal(num_rows, 512, seed=seed + 1)
        self.expected = self.linear(self.x)
        library.use_threads(num_threads, own=True)

    def is_right(self, times: int) -> bool:
        return all(torch.equal(self.linear(self.x), self.expected) for _ in range(times))


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_many_short_jobs_one_after_the_other_are_all_done(num_threads: int) -> None:
    assert Work(0, num_threads).is_right(2000)


def test_job_has_ended_when_the_last_of_its_helpers_has() -> None:
    assert Work(0, 3, num_rows=400).is_right(200)


def test_jobs_of_fewer_and_of_more_threads_take_turns() -> None:
    works = [Work(seed, num_threads) for seed, num_threads in enumerate((5, 2, 9, 1, 3))]
    assert all(work.is_right(3) for _ in range(100) for work in works)


def test_jobs_from_several_python_threads_do_not_mix() -> None:
    works = [Work(10 * i, 3) for i in range(4)]
    results: list[bool] = []
    threads = [threading.Thread(target=lambda w=work: results.append(w.is_right(500))) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


FORK = """
import os, signal, threading, torch
from tests.unit.engine.kernels.test_pool import Work

torch.set_grad_enabled(False)
here, elsewhere = Work(0, 3), Work(2, 3)
ended = threading.Event()
busy = threading.Thread(target=lambda: [elsewhere.is_right(20) for _ in iter(ended.is_set, True)])
busy.start()  # forks find it in the middle of a job
statuses = set()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that hangs
        os._exit(0 if here.is_right(5) else 1)
    statuses.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if statuses != {0}:
        break
ended.set()
busy.join()
assert here.is_right(50)
raise SystemExit(max(statuses, key=abs))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_forked_child_works_on_without_the_threads_it_does_not_have() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
