"""Time to ready: from `orcinus serve` to the first 200 of /health, over several fresh starts.

    python -m bench.startup [--runs 7] [flags of orcinus serve]

Each start is a new process on a free port, stopped by SIGTERM: the first one, which is shown but not counted, once it
has kept the weights that it packed. The file cache is warm then. No OMP_* or ORCINUS_* variable of the shell reaches
the server.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from bench.peers.arms import Launch, serve
from bench.peers.machine import tree
from bench.peers.serving import RunningArm, free_port
from orcinus.engine.platform.tensor_cache import PARTIAL


def time_to_ready(launch: Callable[[int], Launch]) -> tuple[float, float]:
    """Seconds from starting the command to the first 200 of /health, and how many cores others took meanwhile.

    `launch` is given the port. Raises `OrcinusError` if the server does not become ready.
    """
    port, log = free_port(), Path(tempfile.gettempdir()) / f"orcinus-startup-{os.getpid()}.log"
    with RunningArm(launch(port), port, log) as running:
        measured = running.startup_s, running.startup_foreign_cores
        while is_writing(running.process):
            time.sleep(0.1)
    log.unlink()  # an error names it, so that it stays then
    return measured


def is_writing(process: psutil.Process) -> bool:
    """Return whether a server keeps packed weights for the next start."""
    return any(file.path.endswith(PARTIAL) for member in tree(process) for file in member.open_files())


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time to ready of `orcinus serve`.")
    parser.add_argument("--runs", type=int, default=7, help="starts that count [default: 7]")
    args, flags = parser.parse_known_args()
    launch = partial(serve, flags)
    print(f"first start: {time_to_ready(launch)[0]:.2f} s")
    times, foreign_cores = zip(*(time_to_ready(launch) for _ in range(args.runs)), strict=True)
    print("then:", ", ".join(f"{seconds:.2f}" for seconds in times))
    print(
        f"median {statistics.median(times):.2f} s, {min(times):.2f} to {max(times):.2f}, {args.runs} starts,"
        f" {os.cpu_count()} CPUs ({platform.machine()}), others' CPU {max(foreign_cores):.2f} cores,"
        f" Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main()
