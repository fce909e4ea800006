"""One replica: an actor that runs `orcinus serve` in a process of its own, and hands it calls as they are.

What happens to engines within a replica is Orcinus's business, as everywhere. The process ends with its actor, however
that one ends. Knows nothing of how calls come here.
"""

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
from ray import serve

logger = logging.getLogger("ray.serve")

REPLICA_HEADER = "x-orcinus-replica"
# Between two neighbours, and no part of a message.
HOP_BY_HOP = frozenset(
    {"connection", "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "content-length"}
)
_RAYS_OWN = frozenset({"date", "server", "x-request-id"})  # in answers, to which its proxy adds them
_STATS = ("queue_depth", "slots_in_use", "slots")
# Has the kernel send the process SIGTERM when the thread that started it ends, and becomes the command that follows.
_PROGRAM = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")  # before the kernel was asked
os.execvp(sys.argv[2], sys.argv[2:])
"""
_ENDING_WITH_PARENT = (sys.executable, "-c", _PROGRAM)
_STOP_S = 40.0  # a little more than Orcinus takes to drain


@dataclass(frozen=True)
class Call:
    """An HTTP request. `text` and `scope` are what `PrefixRouter` goes by: what begins alike, and for whom."""

    method: str
    path: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    text: str = ""
    scope: str = ""


@dataclass(frozen=True)
class Head:
    """The beginning of an answer; its body follows as bytes."""

    status: int
    headers: list[tuple[str, str]]


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those headers that are passed on."""
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]


class OrcinusProcess:
    """`orcinus serve` on a free port of this machine: ready once made, and ended by `stop`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run `command`, which serves on a loopback address. Raises `RuntimeError` if it ends before it is ready."""
        self._process = subprocess.Popen(
            [*_ENDING_WITH_PARENT, str(os.getpid()), *command, "--host", "127.0.0.1", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.url = self._read_url()
        threading.Thread(target=self._pass_on_output, name="orcinus output", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise `RuntimeError` if the process has ended."""
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"orcinus ended with exit code {code}")

    def stop(self) -> None:
        """Have it finish what runs, and end."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read_url(self) -> str:
        lines = []
        for line in self._output():
            lines.append(line)
            if (match := re.match(r"\s+URL\s+(http://\S+)", line)) is not None:
                return match[1]
        raise RuntimeError(f"orcinus ended with exit code {self._process.wait()}:\n{''.join(lines)}")

    def _pass_on_output(self) -> None:
        for line in self._output():
            logger.info("orcinus: %s", line.rstrip())

    def _output(self) -> Iterable[str]:
        assert self._process.stdout is not None
        return self._process.stdout


class OrcinusReplica:
    """The deployment. Ray calls `check_health` and `record_autoscaling_stats`; the ingress calls `answer`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = OrcinusProcess(command)
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=self._process.url, timeout=None, limits=limits, trust_env=False)  # noqa: S113
        self._name = serve.get_replica_context().replica_id.unique_id

    async def answer(self, call: Call) -> AsyncIterator[Head | bytes]:
        """Yield what Orcinus answers: a `Head`, then the body as it comes. What is cancelled here is aborted there."""
        request = self._http.build_request(call.method, call.path, headers=call.headers, content=call.body)
        response = await self._http.send(request, stream=True)
        try:
            headers = [pair for pair in end_to_end(response.headers.multi_items()) if pair[0] not in _RAYS_OWN]
            yield Head(response.status_code, [*headers, (REPLICA_HEADER, self._name)])
            async for part in response.aiter_raw():
                yield part
        finally:
            await response.aclose()

    async def check_health(self) -> None:
        """Raise if the process is gone or its event loop answers no more.

        While an engine is replaced the replica is healthy: its streams go on in the next one.
        """
        self._process.check()
        (await self._http.get("/live", timeout=10)).raise_for_status()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what `by_queue_depth` goes by, from /metrics."""
        text = (await self._http.get("/metrics", timeout=5)).text
        return {name: _sample(text, f"orcinus_{name}") for name in _STATS}

    def __del__(self) -> None:
        """End the process. Ray calls this when the replica has nothing left to do."""
        with contextlib.suppress(AttributeError):  # it never ran
            self._process.stop()


def _sample(text: str, name: str) -> float:
    match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return 0.0 if match is None else float(match[1])
