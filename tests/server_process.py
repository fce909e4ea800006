"""A real server process on the demo model, on a free port, for tests and for the conformance run.

Knows how to start, ask and end it; what it should answer is the business of whoever asks.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 120.0
LIGHT = "tests.integration.light_server"  # an engine without a model, in a third of the time
GATED = "tests.integration.gated_server"  # the demo model, whose steps can be held up
CONSTANTS = "TEST_SERVER_CONSTANTS"  # variable with a JSON object: the full name of a constant -> its value
PATIENCE_S = 180.0  # for what another process does on a machine that is busy

_POLL_S = 0.02

T = TypeVar("T")


def until(condition: Callable[[], T | None], otherwise: str, timeout_s: float = PATIENCE_S) -> T:
    """Return what `condition` gives, once it gives something. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} within {timeout_s:g} s")
        time.sleep(_POLL_S)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Nobody may be there to reap an orphan, so a zombie has ended, too."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def process_running(module: str, among: Sequence[psutil.Process]) -> psutil.Process | None:
    """The first of these processes that runs `python -m module`, if one does."""
    return next(iter(processes_running(module, among)), None)


def processes_running(module: str, among: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those of these processes that run `python -m module`."""
    found = []
    for process in among:
        with contextlib.suppress(psutil.NoSuchProcess):
            if module in process.cmdline():
                found.append(process)
    return found


class ServerProcess:
    """`orcinus serve ARGS` with what it prints. It is ready once made.

    `module` takes the place of the command, and of the engine process; `constants` are for those that set them.
    """

    def __init__(
        self,
        *args: str,
        module: str = "orcinus.server.cli",
        constants: Mapping[str, float | str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        assert constants is None or module in (LIGHT, GATED), f"{module} has its own constants"
        command = [sys.executable, "-m", module, "serve", "--port", "0", *args]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORCINUS_")}
        environment = inherited | dict(environment or {})
        environment[CONSTANTS] = json.dumps(dict(constants or {}))
        self._engine_module = "orcinus.engine.supervision.engine_process" if module == "orcinus.server.cli" else module
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._has_url = threading.Event()
        self._url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """Known once the server is ready."""
        assert self._has_url.wait(START_TIMEOUT_S), self.log
        assert self._url, self.log
        return self._url

    @cached_property
    def http(self) -> httpx.Client:
        """A client for any number of threads. It keeps no connection; a client a request would cost 25 ms of a core."""
        limits = httpx.Limits(max_keepalive_connections=0)
        options: dict[str, Any] = {"timeout": PATIENCE_S, "trust_env": False}
        if self.url.startswith("unix:"):
            transport = httpx.HTTPTransport(uds=self.url.removeprefix("unix:"), limits=limits)
            return httpx.Client(base_url="http://localhost", transport=transport, **options)
        return httpx.Client(base_url=self.url, limits=limits, verify=False, **options)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def children(self) -> list[psutil.Process]:
        """The processes that it started, and theirs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def engine(self) -> psutil.Process | None:
        """The engine process that there is now, if there is one."""
        return process_running(self._engine_module, self.children())

    def engines(self) -> list[psutil.Process]:
        """All engine processes that there are now."""
        return processes_running(self._engine_module, self.children())

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path, timeout=30)

    def metric(self, name: str) -> float:
        """The value of a sample, whose name is given with its labels as /metrics writes them."""
        return self.metrics(name)[0]

    def metrics(self, *names: str) -> list[float]:
        """The values of several samples at one time."""
        text = self.get("/metrics").text
        matches = {name: re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE) for name in names}
        assert all(matches.values()), f"no sample {[name for name, match in matches.items() if match is None]}"
        return [float(match[1]) for match in matches.values() if match is not None]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def close(self) -> None:
        """End it, whatever state it is in."""
        if "http" in vars(self):
            self.http.close()
        if self.process.poll() is None:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if url := _url_in(line):
                self._url = url
                self._has_url.set()
        self._has_url.set()


def _url_in(line: str) -> str | None:
    """The URL in a line of the summary, or in the line of the log that takes its place; `unix:/path` for a socket."""
    if line.startswith("{"):
        url: str | None = json.loads(line).get("url")
        return url
    match = re.match(r"\s+URL\s+((?:https?://|unix:)\S+)", line)
    return None if match is None else match[1]


StartServer = Callable[..., ServerProcess]
