"""Time to ready: from `orcinus serve` to the first 200 of /ready, over several fresh starts.

    python bench/startup.py [--runs 7] [flags of orcinus serve]

Each start is a new process on a free port, stopped by SIGTERM. The file cache is warm after the first start, which
is shown but not counted.
"""

import argparse
import http.client
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_POLL_S = 0.01
_TIMEOUT_S = 300.0


def time_to_ready(flags: Sequence[str]) -> float:
    """Seconds from starting the command to the first 200 of /ready. Raises `RuntimeError` if there is none."""
    port = _free_port()
    command = [sys.executable, "-m", "server.cli", "serve", "--port", str(port), *flags]
    started = time.monotonic()
    environment = {"ORCINUS_LOG_LEVEL": "warning", **os.environ}
    root = Path(__file__).parent.parent
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=root, env=environment)
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() - started > _TIMEOUT_S:
                raise RuntimeError(f"the server was not ready after {time.monotonic() - started:.1f} s")
            time.sleep(_POLL_S)
        return time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time to ready of `orcinus serve`.")
    parser.add_argument("--runs", type=int, default=7, help="starts that count [default: 7]")
    args, flags = parser.parse_known_args()
    print(f"first start: {time_to_ready(flags):.2f} s")
    times = [time_to_ready(flags) for _ in range(args.runs)]
    print("then:", ", ".join(f"{seconds:.2f}" for seconds in times))
    print(
        f"median {statistics.median(times):.2f} s, {min(times):.2f} to {max(times):.2f}, {args.runs} starts,"
        f" {os.cpu_count()} CPUs ({platform.machine()}), load {os.getloadavg()[0]:.1f},"
        f" Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
