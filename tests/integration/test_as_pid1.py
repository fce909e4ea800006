"""The server as a container runs it: the first process of its PID namespace, where signals have no default action.

Uses `unshare` of util-linux in place of a container engine; where namespaces cannot be made, the test says so. The
engine has no model but where loading one is what the test is about.
"""

import contextlib
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

from tests.effort import slow_but_for
from tests.server_process import LIGHT, until

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
def first_process(log: Path, *, is_ready: bool = True) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """`unshare`, and the server that is process 1 of the namespace it made: ready, or with an engine that loads."""
    module = LIGHT if is_ready else "orcinus.server.cli"
    command = [*unshare_command(), sys.executable, "-m", module, "serve", "--port", "0"]
    with log.open("w") as errors:
        unshare = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert unshare.stdout is not None
    with unshare, unshare.stdout as output:
        try:
            if is_ready:
                assert any("is ready" in line for line in output), log.read_text()
            server = until(lambda: only_child(psutil.Process(unshare.pid)), "the server was not started")
            until(server.children, "the engine was not started")
            yield unshare, server
        finally:
            unshare.kill()


def only_child(process: psutil.Process) -> psutil.Process | None:
    children = process.children()
    return children[0] if children else None


def number_in_namespace(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])


@pytest.mark.parametrize("number", slow_but_for([signal.SIGTERM, signal.SIGINT], signal.SIGTERM))
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


@pytest.mark.slow
def test_first_process_stops_while_its_model_loads(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with first_process(log, is_ready=False) as (unshare, server):
        server.send_signal(signal.SIGTERM)
        assert unshare.wait(STOPPED_WITHIN_S) == 0, log.read_text()


@pytest.mark.slow
def test_first_process_reaps_those_who_lost_their_parent_and_nobody_elses(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with first_process(log) as (unshare, server):
        engine = server.children()[0]
        orphan = leave_orphan(server)
        assert orphan.ppid() == server.pid
        orphan.kill()
        until(lambda: not orphan.is_running(), "a zombie stayed")
        assert engine.is_running()

        server.send_signal(signal.SIGTERM)
        assert unshare.wait(STOPPED_WITHIN_S) == 0, log.read_text()


def leave_orphan(first: psutil.Process) -> psutil.Process:
    """A process in the namespace of `first`, whose own parent has ended."""
    own_user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    enter = ["nsenter", "--target", str(first.pid), *own_user, "--pid", "sh", "-c", "sleep 1000 >/dev/null 2>&1 &"]
    subprocess.run(enter, check=True, timeout=30)
    return until(lambda: sleeping_child(first), "the orphan was not adopted")


def sleeping_child(process: psutil.Process) -> psutil.Process | None:
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "sleep":
                return child
    return None
