"""A real server process: starting, faults of clients, the full queue, the drain, and what is left behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.effort import slow_but_for
from tests.integration.step_gate import StepGate
from tests.server_process import PATIENCE_S, ServerProcess, StartServer, until

LONG: dict[str, Any] = {"prompt": "On and on", "max_tokens": 2000, "ignore_eos": True, "temperature": 0}
KILLED_CLIENT = """
import json, sys, urllib.request
headers = {"content-type": "application/json"}
request = urllib.request.Request(sys.argv[1] + "/v1/completions", sys.argv[2].encode(), headers)
response = urllib.request.urlopen(request)
print(response.readline(), flush=True)
response.read()
"""


@contextlib.contextmanager
def streaming(server: ServerProcess, **body: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream, of which the first event has come."""
    asked = {**LONG, **body, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=asked, timeout=60) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        yield lines


def post(server: ServerProcess, **body: Any) -> httpx.Response:
    return server.http.post("/v1/completions", json=body, timeout=60)


def test_the_server_process_holds_no_torch(server: ServerProcess) -> None:
    assert post(server, prompt="x", max_tokens=1).status_code == 200
    assert "torch" not in Path(f"/proc/{server.pid}/maps").read_text()


@pytest.mark.parametrize("is_streamed", slow_but_for([True, False], True))
def test_a_killed_client_gives_its_slot_to_the_next_in_the_queue(
    start_light_server: StartServer, tmp_path: Path, is_streamed: bool
) -> None:
    gate = StepGate(tmp_path / "gate")
    gate.hold()
    server = start_light_server("--max-num-seqs", "1", constants=gate.constants)
    body = json.dumps({**LONG, "stream": is_streamed})
    client = subprocess.Popen([sys.executable, "-c", KILLED_CLIENT, server.url, body], stdout=subprocess.PIPE)
    until(lambda: server.metric("orcinus_slots_in_use") == 1, "the slot is taken")
    answers: list[httpx.Response] = []
    waiter = threading.Thread(target=lambda: answers.append(post(server, prompt="next", max_tokens=1)))
    waiter.start()
    until(lambda: server.metric("orcinus_queue_depth") == 1, "one waits")
    client.kill()
    client.communicate()
    until(lambda: server.metric('orcinus_requests_total{outcome="abort"}') == 1, "nobody left")
    gate.open()
    waiter.join(PATIENCE_S)
    assert answers[0].status_code == 200
    assert server.metric('orcinus_requests_total{outcome="length"}') == 1
    assert server.metric("orcinus_generation_tokens_total") < LONG["max_tokens"]
    until(lambda: server.metric("orcinus_slots_in_use") == 0, "the slot is free")


def test_a_full_queue_is_429_with_retry_after_and_then_opens_again(
    start_light_server: StartServer, tmp_path: Path
) -> None:
    gate = StepGate(tmp_path / "gate")
    gate.hold()
    server = start_light_server("--max-num-seqs", "1", "--max-queue-len", "1", constants=gate.constants)
    with streaming(server):
        waiter = threading.Thread(target=lambda: post(server, prompt="y", max_tokens=1))
        waiter.start()
        until(lambda: server.metric("orcinus_queue_depth") == 1, "one waits")
        response = post(server, prompt="x", max_tokens=1)
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert server.metric('orcinus_requests_total{outcome="rejected"}') == 1
    gate.open()
    waiter.join(PATIENCE_S)
    assert post(server, prompt="x", max_tokens=1).status_code == 200


def test_100_clients_that_leave_at_once_leave_nothing_behind(server: ServerProcess) -> None:
    def come_and_go() -> None:
        with contextlib.suppress(httpx.TimeoutException):
            server.http.post("/v1/completions", json=LONG, timeout=httpx.Timeout(30, read=0.5))

    threads = [threading.Thread(target=come_and_go) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for gauge in ("slots_in_use", "queue_depth", "kv_blocks_in_use"):
        until(lambda gauge=gauge: server.metric(f"orcinus_{gauge}") == 0, "nothing is left over")  # type: ignore[misc]
    until(lambda: server.metric("orcinus_http_requests_in_progress") == 1, "no request is left over")  # /metrics itself


def test_health_is_not_held_up_by_a_huge_body(server: ServerProcess) -> None:
    """However long the machine takes for the body, no answer of /health takes as long as half of that."""

    def longest_share() -> float:
        answers: list[httpx.Response] = []
        worker = threading.Thread(target=lambda: answers.append(post(server, prompt=text)))
        began = time.monotonic()
        worker.start()
        slowest = 0.0
        while worker.is_alive():
            started = time.monotonic()
            assert server.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
        assert answers[0].status_code == 400
        assert answers[0].json()["error"]["code"] == "context_length_exceeded"
        return slowest / (time.monotonic() - began)

    text = "All work and no play makes a dull boy. " * 200_000
    assert any(longest_share() < 0.5 for _ in range(4))  # what else runs can only make it look worse


@pytest.mark.parametrize("stop", slow_but_for([signal.SIGTERM, signal.SIGINT], signal.SIGTERM))
def test_idle_server_exits_on_sigterm_or_ctrl_c_without_using_up_the_time_to_drain(
    start_light_server: StartServer, stop: signal.Signals
) -> None:
    server = start_light_server("--drain-timeout-s", "3600")
    assert server.get("/ready").status_code == 200
    os.kill(server.pid, stop)
    assert server.wait(PATIENCE_S) == 0


def test_a_killed_engine_that_may_not_be_replaced_ends_the_server_with_a_code(
    start_light_server: StartServer, tmp_path: Path
) -> None:
    gate = StepGate(tmp_path / "gate")
    gate.hold()
    server = start_light_server("--max-engine-restarts", "0", constants=gate.constants)
    with streaming(server) as lines:
        [engine] = psutil.Process(server.pid).children()
        engine.kill()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["type"] == "server_error"
    assert server.wait() == 1
    assert "SIGKILL" in server.log


def test_a_model_that_cannot_be_loaded_is_an_error_in_one_line(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    server = start_server(str(tmp_path))
    assert server.wait(PATIENCE_S) == 1
    assert "orcinus serve: " in server.log
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_memory_that_there_is_not_is_an_error_in_one_line(start_server: StartServer) -> None:
    server = start_server("--kv-cache-memory", "1000TiB")
    assert server.wait(PATIENCE_S) == 1
    line = r"orcinus serve: kv_cache_memory is 1000 TiB, but there are [\d.]+ [GT]iB of memory in all"
    assert re.fullmatch(line, server.log.splitlines()[-1])
    assert "Traceback" not in server.log


def test_a_taken_port_is_an_error_in_one_line(server: ServerProcess, start_server: StartServer) -> None:
    port = server.url.rpartition(":")[2]
    second = start_server("--port", port)
    assert second.wait(PATIENCE_S) == 1
    [_, line] = second.log.splitlines()
    assert line.startswith(f"orcinus serve: cannot listen on 127.0.0.1 port {port}: Address already in use; --port")
