"""The server as a container runs it: the first process of its PID namespace, where signals have no default action.

Uses `unshare` of util-linux in place of a container engine; where namespaces cannot be made, the test says so.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STOPPED_WITHIN_S = 20


def unshare_command() -> list[str]:
    own_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *own_user, "--pid", "--fork", "--kill-child", "--mount-proc"]


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*unshare_command(), "true"], capture_output=True, check=False, timeout=30)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(not can_unshare(), reason="unshare cannot make a PID namespace here")


@contextmanager
def first_process(log: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """`unshare`, and the server that is process 1 of the namespace it made, ready."""
    command = [*unshare_command(), sys.executable, "-m", "server.cli", "serve", "--port", "0"]
    with log.open("w") as errors:
        unshare = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert unshare.stdout is not None
    with unshare, unshare.stdout as output:
        try:
            assert any("is ready" in line for line in output), log.read_text()
            (server,) = psutil.Process(unshare.pid).children()
            yield unshare, server
        finally:
            unshare.kill()


def number_in_namespace(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_process_stops_cleanly_on_signal(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with first_process(log) as (unshare, server):
        assert number_in_namespace(server) == 1
        children = server.children(recursive=True)
        assert children, "the engine is a process of its own"

        server.send_signal(number)
        status = unshare.wait(STOPPED_WITHIN_S)

    assert status == 0, log.read_text()
    assert not [child for child in children if child.is_running()]
