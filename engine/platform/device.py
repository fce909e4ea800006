"""The device that the model runs on: which one, what it can compute, how much memory it has, how busy it is.

Knows nothing of models. Only the model loader and the model runner ask it.
"""

import math
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.platform.control_groups import core_limits, memory_limits, read_system_file

if TYPE_CHECKING:
    import torch

_SAMPLE_INTERVAL_S = 1.0
_SPIN_COUNT = 5000
_STATUS = Path("/proc/self/status")


class DeviceMonitor(Protocol):
    """Says how busy the device is. Cheap to ask: it looks at most once a second."""

    def sample(self) -> tuple[float | None, int | None, int | None]:
        """Return (utilization 0 to 1, used bytes, total bytes), None for what the device does not say."""

    def take_energy_j(self) -> float | None:
        """Return the joules that the device used between the samples since the last call; None if it does not say."""


def resolve_device(setting: Literal["auto", "cpu", "cuda"]) -> "torch.device":
    """Return the device that a setting names. Raises `ModelLoadError` if CUDA is asked for and absent."""
    import torch

    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelLoadError(
            "device is cuda, but this torch sees no CUDA device: install a CUDA build of torch and a driver, "
            "or use --device cpu"
        )
    return torch.device("cuda", torch.cuda.current_device())


def device_name(device: "torch.device") -> str:
    """Return the product's name of the device."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return _cpuinfo_field("model name") or platform.processor() or platform.machine()


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX or Arm's BF16 instructions)."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_cpu_features())


def _cpu_features() -> list[str]:
    return (_cpuinfo_field("flags") or _cpuinfo_field("Features") or "").split()


def available_cores() -> int:
    """Return the number of cores this process may use, by affinity and by its control groups' quotas; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, core_limits())]))


def memory_limit() -> int:
    """Return the bytes that this process may use at most: the machine's, or a control group's if that is less."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit.limit_bytes for limit in memory_limits())])


def available_memory() -> int:
    """Return the bytes that this process may still take without swapping or being killed.

    The machine counts all pages of files as free, and so those that this process has mapped: weights may be among them.
    """
    import psutil

    free = psutil.virtual_memory().available - _mapped_file_bytes()
    return max(0, min([free, *(limit.left_bytes for limit in memory_limits())]))


def _mapped_file_bytes() -> int:
    """Return how much of the files that it has mapped this process has in memory."""
    for line in read_system_file(_STATUS).splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * 1024
    return 0


def device_memory(device: "torch.device") -> int:
    """Return all the memory of a CUDA device, in bytes."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


# How allocators say it that raise a plain RuntimeError: torch's on a CPU, CUDA's, cuBLAS's and cuDNN's for what they
# keep beside torch, and Triton's launcher.
_OUT_OF_MEMORY_WORDS = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch, a library below it or Python ran out of memory, on the device or the host."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def is_broken(device: "torch.device") -> bool:
    """Whether every later call will fail too, as CUDA's do after a fault in a kernel, until the process ends.

    The error at hand does not tell: whichever library calls CUDA next reports the fault in words of its own. Asking
    waits for the device. Not yet run on a GPU.
    """
    if device.type != "cuda":
        return False
    import torch

    try:
        torch.cuda.synchronize(device)
    except RuntimeError:  # torch.AcceleratorError is one
        return True
    return False


def limit_spinning() -> None:
    """Let OpenMP's threads spin for some 0.1 ms only before they sleep; to be called before torch is imported.

    By default they spin for milliseconds, on cores that other threads of this process need between torch's operations.
    What the user has set is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))


def use_available_cores() -> None:
    """Give torch's CPU operations as many threads as there are cores, unless OMP_NUM_THREADS says otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > available_cores():
        torch.set_num_threads(available_cores())


def device_monitor(device: "torch.device") -> DeviceMonitor:
    return _CudaMonitor(device) if device.type == "cuda" else CpuMonitor()


class CpuMonitor:
    """This process's own share of its cores, and its resident memory."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._total = memory_limit()
        self._cores = available_cores()
        self._sampled_at = time.monotonic()
        self._cpu_s = self._cpu_time_s()
        self._last: tuple[float | None, int | None, int | None] = (0.0, self._rss(), self._total)

    def sample(self) -> tuple[float | None, int | None, int | None]:
        elapsed_s = time.monotonic() - self._sampled_at
        if elapsed_s < _SAMPLE_INTERVAL_S:
            return self._last
        cpu_s = self._cpu_time_s()
        busy = (cpu_s - self._cpu_s) / (elapsed_s * self._cores)
        self._sampled_at += elapsed_s
        self._cpu_s = cpu_s
        self._last = (min(1.0, busy), self._rss(), self._total)
        return self._last

    def take_energy_j(self) -> float | None:
        return None  # of a CPU the server process reads it: counters are the machine's, not this process'

    def _cpu_time_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _rss(self) -> int:
        return int(self._process.memory_info().rss)


class _CudaMonitor:
    """The whole device, as NVML sees it; silent where NVML is missing. Not yet run on a GPU."""

    def __init__(self, device: "torch.device") -> None:
        self._sampled_at = -_SAMPLE_INTERVAL_S
        self._last: tuple[float | None, int | None, int | None] = (None, None, None)
        self._handle = _nvml_handle(device)
        self._energy_mj: int | None = None  # since the driver was loaded, as of the last sample
        self._taken_mj: int | None = None

    def sample(self) -> tuple[float | None, int | None, int | None]:
        now = time.monotonic()
        if self._handle is None or now - self._sampled_at < _SAMPLE_INTERVAL_S:
            return self._last
        import pynvml

        self._sampled_at = now
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
            busy = pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
        except pynvml.NVMLError:
            return self._last
        self._last = (busy, int(memory.used), int(memory.total))
        self._energy_mj = self._read_energy()
        return self._last

    def take_energy_j(self) -> float | None:
        before, self._taken_mj = self._taken_mj, self._energy_mj
        if self._energy_mj is None:
            return None
        return 0.0 if before is None else max(0, self._energy_mj - before) / 1000

    def _read_energy(self) -> int | None:
        """Return the millijoules since the driver was loaded; None for devices before Volta, which do not count."""
        import pynvml

        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except pynvml.NVMLError:
            return None


def _nvml_handle(device: "torch.device") -> object | None:
    """Return NVML's handle, None without NVML. By UUID, because NVML counts devices that are hidden from CUDA."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle: object = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
    return handle


def _cpuinfo_field(name: str) -> str | None:
    for line in read_system_file(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
