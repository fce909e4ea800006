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
_SAMPLE_S = 0.2


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
    """A window in which one process and what it started are watched: their memory, and the CPU that others took.

    What this process takes itself counts as the arm's: it is the client, or waits.
    """

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._is_over = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self.peak_rss = 0
        self.foreign_cores = 0.0

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        self._foreign_s = self._foreign_cpu_s()
        self._sampler.start()
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._is_over.set()
        self._sampler.join()
        foreign_s = self._foreign_cpu_s() - self._foreign_s
        self.foreign_cores = max(foreign_s / (time.monotonic() - self._started_s), 0.0)

    def _sample(self) -> None:
        while not self._is_over.wait(_SAMPLE_S):
            self.peak_rss = max(self.peak_rss, tree_rss(self._process))

    def _foreign_cpu_s(self) -> float:
        own = psutil.Process().cpu_times()
        return _busy_s() - tree_cpu_s(self._process) - own.user - own.system


def tree(process: psutil.Process) -> list[psutil.Process]:
    """The process and all that it has started; none where it has ended."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def tree_rss(process: psutil.Process) -> int:
    """Resident bytes; what processes share is counted once for each of them."""
    total = 0
    for member in tree(process):
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


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
