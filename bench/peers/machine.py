"""The machine while something is measured: memory bandwidth, peak memory of an arm, and what others take of the CPU."""

import os
import platform
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import psutil

_ARRAY_BYTES = 256 * 2**20
_READS = 3


class MemoryReader:
    """Reads arrays that fit no cache, with a thread for each core that this process may use."""

    def __init__(self) -> None:
        num_threads = len(os.sched_getaffinity(0))
        self._arrays = [np.ones(_ARRAY_BYTES // 4, dtype=np.float32) for _ in range(num_threads)]

    def bandwidth_gb_per_s(self) -> float:
        """The best of three tries: less is what others took in the meantime."""
        return max(self._try() for _ in range(3))

    def _try(self) -> float:
        threads = [threading.Thread(target=self._read, args=(array,)) for array in self._arrays]
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(self._arrays) * _READS * _ARRAY_BYTES / 1e9 / (time.perf_counter() - started_s)

    @staticmethod
    def _read(array: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> None:
        for _ in range(_READS):
            array.max()


class Watch:
    """A window in which the CPU is watched: what one process and what it started took of it, and what others took.

    Both are in cores. What this process takes itself counts as neither: it is the client, or waits.
    """

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.arm_cores = 0.0
        self.foreign_cores = 0.0

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        self._busy_s, self._arm_s, self._own_s = self._cpu_s()
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        duration_s = time.monotonic() - self._started_s
        busy_s, arm_s, own_s = self._cpu_s()
        self.arm_cores = (arm_s - self._arm_s) / duration_s
        foreign_s = (busy_s - self._busy_s) - (arm_s - self._arm_s) - (own_s - self._own_s)
        self.foreign_cores = max(foreign_s / duration_s, 0.0)

    def _cpu_s(self) -> tuple[float, float, float]:
        own = psutil.Process().cpu_times()
        return _busy_s(), tree_cpu_s(self._process), own.user + own.system


def tree(process: psutil.Process) -> list[psutil.Process]:
    """The process and all that it has started; none where it has ended."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def peak_memory(process: psutil.Process) -> int:
    """The most bytes that the process and what it started have had, what they share counted once.

    The kernel keeps each one's peak; what of their memory now is counted more than once is taken off their sum. Peaks
    of different moments add up as if they were of one, and what has ended before is not in it.
    """
    return sum(_peak_bytes(member.pid) for member in tree(process))


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        now = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return proc_bytes(status, "VmHWM") - (proc_bytes(now, "Rss") - proc_bytes(now, "Pss"))


def proc_bytes(text: str, name: str) -> int:
    """Return what a file of /proc says of `name`, in kB there; 0 where it says nothing: the process has ended."""
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 0


def tree_cpu_s(process: psutil.Process) -> float:
    """CPU seconds, those of children that have ended and were waited for included."""
    total = 0.0
    for member in tree(process):
        try:
            total += sum(member.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def describe_machine() -> str:
    """One line: a number means nothing without it."""
    memory_gib = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {_cpu_name()}, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}"


def _busy_s() -> float:
    """Of all cores; time that the host gave to other machines counts as busy."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
