"""What each of several engines has of the machine."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orcinus.config.engine_config import EngineShare
from orcinus.config.settings import SettingsError
from orcinus.engine.platform import shares
from orcinus.engine.platform.shares import divide_cores, divide_gpus, divide_machine, visible_gpus
from tests.effort import slow_but_for

TAKE = """
import json, os, sys, threading
from orcinus.config.engine_config import EngineShare
from orcinus.engine.platform.shares import take_share
running = threading.Event()
early = threading.Thread(target=running.wait)
early.start()
take_share(EngineShare(**json.loads(sys.argv[1])))
before = os.sched_getaffinity(early.native_id)
late = []
thread = threading.Thread(target=lambda: late.append(os.sched_getaffinity(0)))
thread.start(); thread.join()
running.set()
assert "torch" not in sys.modules
import torch
print([sorted(each) for each in (os.sched_getaffinity(0), before, late[0])], torch.get_num_threads())
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processors, two threads to a core: 0 and 4 are one, 1 and 5, ...; and time for all of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(8)}, raising=False)
    monkeypatch.setattr(shares, "available_cores", lambda: 8)
    monkeypatch.setattr(shares, "_place_of", lambda cpu: (0, cpu % 4, cpu))


@pytest.mark.usefixtures("machine")
def test_cores_are_divided_with_neighbours_together_and_none_twice() -> None:
    assert [share.cores for share in divide_cores(4)] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert [share.cores for share in divide_cores(3)] == [(0, 4, 1), (5, 2, 6), (3, 7)]
    assert [share.num_threads for share in divide_cores(3)] == [3, 3, 2]
    assert [(share.index, share.num_engines, share.cuda_device) for share in divide_cores(2)] == [
        (0, 2, None),
        (1, 2, None),
    ]


@pytest.mark.usefixtures("machine")
def test_where_a_group_grants_less_time_there_are_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "available_cores", lambda: 3)
    assert [share.num_threads for share in divide_cores(2)] == [2, 1]
    assert [len(share.cores) for share in divide_cores(2)] == [4, 4]


@pytest.mark.usefixtures("machine")
def test_more_engines_than_cores_are_refused_with_both_numbers() -> None:
    assert len(divide_cores(8)) == 8
    with pytest.raises(SettingsError, match=r"replicas is 9, but cores that this process may use are 8"):
        divide_cores(9)


def test_each_engine_has_a_gpu_of_its_own() -> None:
    assert [share.cuda_device for share in divide_gpus(2, ["GPU-a", "GPU-b", "GPU-c"])] == ["GPU-a", "GPU-b"]
    with pytest.raises(SettingsError, match=r"replicas is 3, but GPUs for them are 2"):
        divide_gpus(3, ["0", "1"])


@pytest.mark.parametrize(("named", "gpus"), [("", []), ("-1", []), ("2, 3", ["2", "3"]), ("GPU-1234", ["GPU-1234"])])
def test_gpus_are_those_that_the_environment_leaves(
    named: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus


@pytest.mark.usefixtures("machine")
def test_gpus_are_divided_where_there_are_any_and_the_device_may_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [share.cuda_device for share in divide_machine(2, "auto")] == ["0", "1"]
    assert [share.cuda_device for share in divide_machine(2, "cpu")] == [None, None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert divide_machine(4, "auto")[0].cores == (0, 4)
    with pytest.raises(SettingsError, match="GPUs for them are 0"):
        divide_machine(2, "cuda")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no threads to cores")
@pytest.mark.parametrize("asked", slow_but_for([None, "1", "64", "nonsense"], "64"))
def test_an_engine_keeps_to_its_cores_in_all_threads_and_torch_counts_those(asked: str | None) -> None:
    core = min(os.sched_getaffinity(0))
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if asked is not None:
        environment["OMP_NUM_THREADS"] = asked
    share = f'{{"index": 0, "num_engines": 2, "cores": [{core}], "num_threads": 1}}'
    done = subprocess.run(
        [sys.executable, "-c", TAKE, share],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[4],
    )
    assert done.stdout.strip() == f"[[{core}], [{core}], [{core}]] 1", done.stderr


def test_an_engine_sees_the_gpu_of_its_share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    shares.take_share(replace(EngineShare(index=1, num_engines=2), cuda_device="GPU-b"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b"
