"""Which device, how much memory, how busy: read from the system, so the system is made up here."""

import os
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from orcinus.engine.platform import control_groups, device
from orcinus.engine.platform.device import (
    CpuMonitor,
    available_cores,
    available_memory,
    cpu_has_bfloat16,
    is_broken,
    is_out_of_memory,
    limit_spinning,
    memory_limit,
)

MIB = 2**20


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 cores and 1000 MiB, 600 of them free, with an empty control group."""
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(device, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    memory = SimpleNamespace(total=1000 * MIB, available=600 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return tmp_path


def test_without_a_control_group_the_machine_is_the_limit(system: Path) -> None:
    assert (available_cores(), memory_limit(), available_memory()) == (8, 1000 * MIB, 600 * MIB)


def test_control_group_limits_cores_and_memory(system: Path) -> None:
    (system / "cpu.max").write_text("250000 100000\n")
    (system / "memory.max").write_text(f"{500 * MIB}\n")
    (system / "memory.current").write_text(f"{100 * MIB}\n")
    assert (available_cores(), memory_limit(), available_memory()) == (3, 500 * MIB, 400 * MIB)


def test_control_group_with_more_than_the_machine_has_changes_nothing(system: Path) -> None:
    (system / "cpu.max").write_text("900000 100000\n")
    (system / "memory.max").write_text(f"{2000 * MIB}\n")
    (system / "memory.current").write_text(f"{900 * MIB}\n")
    assert (available_cores(), memory_limit(), available_memory()) == (8, 1000 * MIB, 600 * MIB)


def test_a_control_group_that_is_full_leaves_nothing_and_a_core(system: Path) -> None:
    (system / "cpu.max").write_text("100 100000\n")
    (system / "memory.max").write_text(f"{500 * MIB}\n")
    (system / "memory.current").write_text(f"{501 * MIB}\n")
    assert (available_cores(), available_memory()) == (1, 0)


def test_files_that_this_process_has_mapped_are_not_free_although_the_machine_counts_them_so(system: Path) -> None:
    (system / "status").write_text(f"VmRSS:\t {300 * 1024} kB\nRssAnon:\t 9 kB\nRssFile:\t   {200 * 1024} kB\n")
    assert available_memory() == 400 * MIB


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: asimd bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_taken_from_the_processors_flags(
    text: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "read_system_file", lambda _: text)
    assert cpu_has_bfloat16() is expected


def test_cpu_utilization_is_this_processs_share_of_its_cores(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, busy = [100.0], [5.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(CpuMonitor, "_cpu_time_s", lambda _: busy[0])
    monitor = CpuMonitor()
    now[0], busy[0] = 100.5, 9.0
    assert monitor.sample()[0] == 0.0  # too early to look again
    now[0], busy[0] = 102.0, 9.0
    assert monitor.sample()[0] == pytest.approx(4 / (2 * 8))
    now[0], busy[0] = 103.0, 99.0
    utilization, used, total = monitor.sample()
    assert (utilization, total) == (1.0, 1000 * MIB)
    assert used == psutil.Process().memory_info().rss or used


class FakeNvml(types.ModuleType):
    """Enough of pynvml for one device."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__("pynvml")
        self.broken = broken
        self.asked_for = ""
        self.energy_mj: int | None = 5_000

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked_for = uuid
        return "handle"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        assert handle == "handle"
        return SimpleNamespace(used=3 * MIB, total=10 * MIB)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        assert handle == "handle"
        return SimpleNamespace(gpu=42)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "handle"
        if self.energy_mj is None:
            raise self.NVMLError
        return self.energy_mj


@pytest.fixture
def cuda_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc-def"))
    return torch.device("cuda", 0)


def test_cuda_utilization_and_memory_come_from_nvml(cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert device.device_monitor(cuda_device).sample() == (0.42, 3 * MIB, 10 * MIB)
    assert nvml.asked_for == "GPU-abc-def"


def test_energy_of_a_gpu_is_counted_between_samples(cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, now = FakeNvml(), [100.0]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monitor = device.device_monitor(cuda_device)
    monitor.sample()
    assert monitor.take_energy_j() == 0.0, "what was used before nobody knows"
    taken = []
    for moment, energy_mj in ((100.5, 7_000), (101.5, 8_500), (102.6, 9_000)):
        now[0], nvml.energy_mj = moment, energy_mj
        monitor.sample()
        taken.append(monitor.take_energy_j())
    assert taken == [0.0, 3.5, 0.5]
    assert monitor.take_energy_j() == 0.0


def test_what_does_not_count_energy_says_nothing(cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    nvml.energy_mj = None
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monitor = device.device_monitor(cuda_device)
    monitor.sample()
    assert monitor.take_energy_j() is None
    assert CpuMonitor().take_energy_j() is None


def test_cuda_without_nvml_says_nothing(cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    assert device.device_monitor(cuda_device).sample() == (None, None, None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device.device_monitor(cuda_device).sample() == (None, None, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_openmp_spins_briefly_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"), False),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_every_allocator_has_words_of_its_own_for_want_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize("fault", [torch.AcceleratorError("an illegal memory access"), RuntimeError("CUDA error")])
def test_a_device_is_broken_if_it_cannot_be_waited_for(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert not is_broken(torch.device("cpu"))
    assert waited == []
    assert not is_broken(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]

    def fail(_: torch.device) -> None:
        raise fault

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert is_broken(torch.device("cuda"))
    assert not is_broken(torch.device("cpu"))
