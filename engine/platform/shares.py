"""What each of several engines on one machine has of it: cores, or a GPU. Divided by the server, taken by the engine.

Knows nothing of what engines do, and imports no torch: cores have to be taken before torch counts them.
"""

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from orcinus.config.engine_config import EngineShare
from orcinus.engine.platform.control_groups import read_system_file
from orcinus.engine.platform.device import available_cores

_CPUS = Path("/sys/devices/system/cpu")
_THREADS = Path("/proc/self/task")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_NUM_THREADS = "OMP_NUM_THREADS"


def divide_machine(num_engines: int, device: Literal["auto", "cpu", "cuda"]) -> list[EngineShare]:
    """Return the share of each engine: a GPU where `device` allows it and there are any, else cores.

    Raises `SettingsError` where there are more engines than GPUs, or than cores that this process may use.
    """
    devices = [] if device == "cpu" else visible_gpus()
    return divide_gpus(num_engines, devices) if devices or device == "cuda" else divide_cores(num_engines)


def divide_gpus(num_engines: int, devices: Sequence[str]) -> list[EngineShare]:
    """Give each engine a GPU of its own, of those that CUDA_VISIBLE_DEVICES names. Not yet run on a GPU."""
    if num_engines > len(devices):
        raise _too_many(f"replicas is {num_engines}, but GPUs for them are {len(devices)}: each has one of its own")
    return [
        EngineShare(index=index, num_engines=num_engines, cuda_device=device)
        for index, device in enumerate(devices[:num_engines])
    ]


def divide_cores(num_engines: int) -> list[EngineShare]:
    """Divide the cores that this process may run on, neighbours together; the first engines have what is left over.

    Where a control group grants less time than that, the engines have as many threads as it grants cores.
    """
    num_cores = available_cores()
    if num_engines > num_cores:
        raise _too_many(
            f"replicas is {num_engines}, but cores that this process may use are {num_cores}: each has one of its own"
        )
    cores = sorted(os.sched_getaffinity(0), key=_place_of) if hasattr(os, "sched_getaffinity") else []
    pinned, threads = _parts(len(cores), num_engines), _parts(num_cores, num_engines)
    return [
        EngineShare(
            index=index,
            num_engines=num_engines,
            cores=tuple(cores[pinned[index]]),
            num_threads=len(range(num_cores)[threads[index]]),
        )
        for index in range(num_engines)
    ]


def visible_gpus() -> list[str]:
    """Return the GPUs that engines may have, as CUDA_VISIBLE_DEVICES names them; none without a driver."""
    if (named := os.environ.get(_VISIBLE)) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]  # NVML's order is not CUDA's
    except ImportError:
        return []
    except pynvml.NVMLError:
        return []


def take_share(share: EngineShare) -> None:
    """Keep this process to its share; to be called in the engine, before torch is imported.

    Every thread is bound to the cores, those that other threads start later too. OpenMP has so many threads, or what
    OMP_NUM_THREADS said where that is less.
    """
    if share.cuda_device is not None:
        os.environ[_VISIBLE] = share.cuda_device
        return
    if share.cores and hasattr(os, "sched_setaffinity"):
        for thread in _THREADS.iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), share.cores)
    asked = os.environ.get(_NUM_THREADS, "")
    os.environ[_NUM_THREADS] = str(min(share.num_threads, int(asked)) if asked.isdigit() else share.num_threads)


def _too_many(message: str) -> ValueError:
    from orcinus.config.values import SettingsError  # pydantic, which the engine does without

    return SettingsError(message)


def _parts(number: int, num_parts: int) -> list[slice]:
    """Return slices of `range(number)` that differ by one at most, the larger ones first."""
    size, rest = divmod(number, num_parts)
    starts = [size * index + min(index, rest) for index in range(num_parts + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(starts)]


def _place_of(cpu: int) -> tuple[int, int, int]:
    """Return what sorts processors so that the threads of a core, and the cores of a socket, are neighbours."""
    socket, core = (
        read_system_file(_CPUS / f"cpu{cpu}" / "topology" / name) for name in ("physical_package_id", "core_id")
    )
    return (int(socket) if socket.isdigit() else 0, int(core) if core.isdigit() else cpu, cpu)


def _text(uuid: str | bytes) -> str:
    return uuid.decode() if isinstance(uuid, bytes) else uuid
