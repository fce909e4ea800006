"""Time to ready: from `orcinus serve` to the first 200 of /health, over several fresh starts.

    python -m bench.startup [--runs 7] [flags of orcinus serve]

Each start is a new process on a free port, stopped by SIGTERM. The file cache is warm after the first start, which
is shown but not counted. No OMP_* or ORCINUS_* variable of the shell reaches the server.
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

from bench.peers.arms import Launch, serve
from bench.peers.serving import RunningArm, free_port


def time_to_ready(launch: Callable[[int], Launch]) -> tuple[float, float]:
    """Seconds from starting the command to the first 200 of /health, and how many cores others took meanwhile.

    `launch` is given the port. Raises `OrcinusError` if the server does not become ready.
    """
    port, log = free_port(), Path(tempfile.gettempdir()) / f"orcinus-startup-{os.getpid()}.log"
    with RunningArm(launch(port), port, log) as running:
        measured = running.startup_s, running.startup_foreign_cores
    log.unlink()  # an error names it, so that it stays then
    return measured


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
