"""A running arm: started, driven, held still while others are measured, and stopped.

Servers are driven over HTTP by the load generator of `orcinus bench serve`, the others by their driver. Both give the
same records.
"""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol, Self

import psutil

from bench.peers.arms import Launch
from bench.peers.drivers.conversation import Answer
from bench.peers.environments import ROOT
from bench.peers.loads import Load
from bench.peers.machine import Watch, peak_memory, tree
from orcinus.engine.errors import OrcinusError
from orcinus.server.load.answers import RequestRecord
from orcinus.server.load.http_client import HttpClient
from orcinus.server.load.prompts import LoadItem
from orcinus.server.load.run import LoadRun, run_load
from orcinus.server.load.session import run_on_fast_loop
from orcinus.server.load.target import Target, first_model

_POLL_S = 0.02
_START_TIMEOUT_S = 900.0
_REQUEST_TIMEOUT_S = 900.0
_STOP_TIMEOUT_S = 30.0
# An arm that takes no more than so many cores for so long has settled.
_QUIET_CORES, _QUIET_S, _LONGEST_SETTLING_S = 0.05, 2.0, 60.0
# What a shell may have set for one of the arms, or for the threads of some: none gets it but by its own arguments.
_NOT_INHERITED = ("OMP_", "KMP_", "GOMP_", "MKL_", "OV_", "ORCINUS_", "VLLM_")


class _Driven(Protocol):
    def wait_until_ready(self, process: "subprocess.Popen[str]") -> dict[str, Any]: ...
    def run(self, items: Sequence[LoadItem], load: Load) -> LoadRun: ...


class RunningArm:
    """A process with its output in `log`. Raises `OrcinusError` where it ends before it is ready.

    `facts` are what it says of itself. `peak_bytes` is its memory as of the last time that it was held.
    """

    def __init__(self, launch: Launch, port: int, log: Path) -> None:
        self._log = log.open("w")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        environment = {**inherited, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **launch.environment}
        started_s = time.monotonic()
        self._popen = subprocess.Popen(
            launch.command,
            stdin=subprocess.PIPE,
            stdout=self._log if launch.ready_path else subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self.process = psutil.Process(self._popen.pid)
        self._driven: _Driven = _Server(port, launch.ready_path) if launch.ready_path else _Driver(self._popen)
        try:
            with Watch(self.process) as watch:
                said = self._driven.wait_until_ready(self._popen)
        except BaseException as error:
            self.stop()
            if isinstance(error, OrcinusError):
                raise OrcinusError(f"{error}; its output is in {log}") from None
            raise
        self.startup_s = time.monotonic() - started_s
        self.startup_foreign_cores = watch.foreign_cores
        self.facts = {**launch.facts, **said}
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def run(self, items: Sequence[LoadItem], load: Load) -> tuple[LoadRun, Watch]:
        """Return what was measured, and which processes took the CPU meanwhile.

        With arrivals as many are under way as have come. Raises `OrcinusError` if there are some and the arm is no
        server.
        """
        with Watch(self.process) as watch:
            run = self._driven.run(items, load)
        return run, watch

    def settle(self) -> None:
        """Wait until it has done what it does behind the scenes once it is ready, or for a minute."""
        end_s = time.monotonic() + _LONGEST_SETTLING_S
        while time.monotonic() < end_s:
            with Watch(self.process) as watch:
                time.sleep(_QUIET_S)
            if watch.arm_cores < _QUIET_CORES:
                return

    def hold(self) -> None:
        """Take no CPU until `resume`."""
        for member in tree(self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
        self.peak_bytes = max(self.peak_bytes, peak_memory(self.process))

    def resume(self) -> None:
        for member in tree(self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()

    def stop(self) -> None:
        """As a person would with Ctrl-C's signal; what is left of it then is killed."""
        self.resume()
        members = tree(self.process)
        self._popen.terminate()
        _, left = psutil.wait_procs(members, _STOP_TIMEOUT_S)
        for member in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class _Server:
    def __init__(self, port: int, ready_path: str) -> None:
        self._port = port
        self._ready_path = ready_path

    def wait_until_ready(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        started_s = time.monotonic()
        while not _is_ready(self._port, self._ready_path):
            if process.poll() is not None or time.monotonic() - started_s > _START_TIMEOUT_S:
                raise OrcinusError(f"{process.args!r} was not ready after {time.monotonic() - started_s:.0f} s")
            time.sleep(_POLL_S)
        return {}

    def run(self, items: Sequence[LoadItem], load: Load) -> LoadRun:
        return run_on_fast_loop(self._run(items, load))

    async def _run(self, items: Sequence[LoadItem], load: Load) -> LoadRun:
        async with HttpClient(f"http://127.0.0.1:{self._port}", None, _REQUEST_TIMEOUT_S) as client:
            target = Target(client, await first_model(client), "completions", load.sampling, ignore_eos=True)
            return await run_load(
                target,
                items,
                arrivals=load.arrivals or [0.0] * len(items),
                max_concurrency=None if load.arrivals else load.max_concurrency,
                on_done=lambda: None,
            )


class _Driver:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._requests: IO[str] = process.stdin
        self._answers: IO[str] = process.stdout

    def wait_until_ready(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        return dict(self._read())

    def run(self, items: Sequence[LoadItem], load: Load) -> LoadRun:
        if load.arrivals:
            raise OrcinusError("a driver gets all requests at once; only a server can be sent one after the other")
        asked = {
            "requests": [(item.prompt, item.max_tokens) for item in items],
            "max_concurrency": load.max_concurrency,
            "sampling": dict(load.sampling),
        }
        self._requests.write(json.dumps(asked) + "\n")
        self._requests.flush()
        return load_run([Answer(**answer) for answer in self._read()], items)

    def _read(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise OrcinusError("the driver ended without an answer")
        return json.loads(line)


def load_run(answers: Sequence[Answer], items: Sequence[LoadItem]) -> LoadRun:
    """Return what a driver measured, as the load generator would have it. No client takes any CPU."""
    started_s = min(answer.sent_s for answer in answers)
    records = [_record(answer, item, started_s) for answer, item in zip(answers, items, strict=True)]
    return LoadRun(records, max(record.ended_s for record in records), client_cpu=0.0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _record(answer: Answer, item: LoadItem, started_s: float) -> RequestRecord:
    times_s = [time_s - started_s for time_s in answer.chunk_times_s]
    has_failed = answer.error is not None or not times_s
    return RequestRecord(
        sent_s=answer.sent_s - started_s,
        ended_s=times_s[-1] if times_s else answer.sent_s - started_s,
        asked_prompt_tokens=item.prompt_tokens,
        asked_output_tokens=item.max_tokens,
        chunk_times_s=times_s,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        failure="no answer" if has_failed else None,
        error=answer.error,
    )


def _is_ready(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
