"""The end of a server, whoever wants it and whenever: what runs is finished, no process and no port stays behind.

With an engine that has no model but where the test is about one: loading it, or its work among signals. Its steps come
slowly until what has to happen meanwhile has happened.
"""

import contextlib
import http.client
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.effort import slow_but_for
from tests.integration.step_gate import StepGate
from tests.server_process import GATED, LIGHT, PATIENCE_S, ServerProcess, StartServer, is_alive, process_running, until

LONG = {"prompt": "On and on", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
ENDLESS = {**LONG, "max_tokens": 2000}
REGEX = {"prompt": "x", "max_tokens": 4, "structured_outputs": {"regex": "[ab]{2,9}"}}
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def gate(tmp_path: Path) -> StepGate:
    """That of the servers of the test, closed but for a few steps a second."""
    gate = StepGate(tmp_path / "gate")
    gate.hold()
    return gate


@pytest.fixture
def start_held(start_server: StartServer, gate: StepGate) -> StartServer:
    """Starts servers held up by the gate, with or without a model (`GATED`, `LIGHT`), and that have long to drain."""

    def start(*args: str, module: str = LIGHT) -> ServerProcess:
        return start_server("--drain-timeout-s", "600", *args, module=module, constants=gate.constants)

    return start


@contextlib.contextmanager
def streaming(server: ServerProcess, body: dict[str, Any]) -> Iterator[Iterator[str]]:
    """The lines of a stream, of which the first event has come."""
    asked = {**body, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=asked, timeout=120) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        yield lines


@contextlib.contextmanager
def reading_nothing(server: ServerProcess, body: dict[str, Any]) -> Iterator[None]:
    address, data = urlsplit(server.url), json.dumps(body).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((address.hostname, address.port))
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
        connection.sendall(f"{head}\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
        yield


class Asking(threading.Thread):
    """A plain request in a thread of its own."""

    def __init__(self, server: ServerProcess, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._body = body
        self._response: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self._response = self._server.http.post("/v1/completions", json=self._body, timeout=120)

    def response(self) -> httpx.Response:
        self.join(120)
        assert self._response is not None, "it was not answered"
        return self._response


class Sending:
    """A request whose body stops in the middle."""

    def __init__(self, server: ServerProcess, body: dict[str, Any]) -> None:
        address, self._body = urlsplit(server.url), json.dumps(body).encode()
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
        self._connection.putrequest("POST", "/v1/completions")
        self._connection.putheader("content-type", "application/json")
        self._connection.putheader("content-length", str(len(self._body)))
        self._connection.endheaders(self._body[:5])

    def go_on(self) -> None:
        self._connection.send(self._body[5:])

    def answer(self) -> tuple[int, dict[str, Any]]:
        with contextlib.closing(self._connection), self._connection.getresponse() as response:
            return response.status, json.loads(response.read())


def await_entering(server: ServerProcess) -> None:
    """Until there is a request besides that which asks."""
    until(lambda: server.metric("orcinus_http_requests_in_progress") == 2, "it did not come in")


def await_busy(server: ServerProcess, *, num_waiting: int = 0) -> None:
    until(lambda: server.metric("orcinus_slots_in_use") >= 1, "no slot was taken")
    until(lambda: server.metric("orcinus_queue_depth") >= num_waiting, f"{num_waiting} did not wait")


def await_draining(server: ServerProcess) -> None:
    until(lambda: server.get("/ready").status_code == 503, "/ready stayed green")


def signal_all(server: ServerProcess, number: signal.Signals) -> None:
    """Do what a terminal's Ctrl-C does, and a service manager's stop. The server hears of it last."""
    for child in server.children():
        child.send_signal(number)
    server.process.send_signal(number)


def last_event(lines: Iterator[str]) -> dict[str, Any]:
    """The event before the [DONE] that must end it."""
    rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    event: dict[str, Any] = json.loads(rest[-2].removeprefix("data: "))
    return event


def assert_all_end(processes: list[psutil.Process]) -> None:
    assert processes
    until(lambda: not any(map(is_alive, processes)), "orphans went on")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- told to end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", slow_but_for(SIGNALS, signal.SIGTERM))
def test_a_signal_lets_streams_plain_requests_and_the_queue_finish(
    start_held: StartServer, gate: StepGate, number: signal.Signals
) -> None:
    server = start_held("--max-num-seqs", "1")
    with streaming(server, LONG) as lines:
        plain, queued = Asking(server, LONG), Asking(server, LONG)
        await_busy(server, num_waiting=2)
        children = server.children()
        server.process.send_signal(number)
        await_draining(server)
        refused = server.http.post("/v1/completions", json={"prompt": "x"}, timeout=30)
        gate.open()
        assert last_event(lines)["choices"][0]["finish_reason"] == "length"
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    for asking in (plain, queued):
        assert asking.response().json()["usage"]["completion_tokens"] == LONG["max_tokens"]
    assert server.wait(PATIENCE_S) == 0
    assert_all_end(children)
    assert "Traceback" not in server.log


@pytest.mark.parametrize("number", slow_but_for(SIGNALS, signal.SIGINT))
def test_a_signal_to_all_processes_at_once_leaves_the_engine_to_finish(
    start_held: StartServer, gate: StepGate, number: signal.Signals
) -> None:
    gate.open()
    server = start_held(module=GATED)
    assert Asking(server, REGEX).response().status_code == 200  # there is a process that tries out grammars, too
    gate.hold()
    with streaming(server, LONG) as lines:
        signal_all(server, number)
        await_draining(server)
        gate.open()
        assert last_event(lines)["choices"][0]["finish_reason"] == "length"
    assert server.wait(PATIENCE_S) == 0
    assert "the engine is gone" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_a_signal_lets_a_request_finish_that_is_still_being_read(start_light_server: StartServer) -> None:
    server = start_light_server("--drain-timeout-s", "600")
    sending = Sending(server, LONG)
    await_entering(server)
    server.terminate()
    await_draining(server)
    assert server.http.post("/v1/completions", json={"prompt": "x"}, timeout=30).status_code == 503
    sending.go_on()
    status, answer = sending.answer()
    assert (status, answer["usage"]["completion_tokens"]) == (200, LONG["max_tokens"])
    assert server.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_a_body_that_never_comes_holds_the_end_up_no_longer_than_the_drain(start_light_server: StartServer) -> None:
    server = start_light_server("--drain-timeout-s", "0.1")
    sending = Sending(server, LONG)
    await_entering(server)
    server.terminate()
    status, answer = sending.answer()
    assert (status, answer["error"]["code"]) == (503, "draining")
    assert server.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log


def test_when_the_drain_time_is_over_streams_get_an_error_event_and_plain_requests_an_error(
    start_held: StartServer,
) -> None:
    server = start_held("--max-num-seqs", "2", "--drain-timeout-s", "0.1")
    with streaming(server, ENDLESS) as lines:
        plain = Asking(server, ENDLESS)
        until(lambda: server.metric("orcinus_slots_in_use") == 2, "no second slot was taken")
        server.terminate()
        assert last_event(lines)["error"]["type"] == "server_error"
    assert plain.response().status_code == 503
    assert plain.response().json()["error"]["type"] == "server_error"
    assert server.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("number", slow_but_for(SIGNALS, signal.SIGTERM))
def test_a_second_signal_ends_what_runs_and_what_waits(start_held: StartServer, number: signal.Signals) -> None:
    server = start_held("--max-num-seqs", "1", "--drain-timeout-s", "600")
    with streaming(server, ENDLESS) as lines:
        queued = Asking(server, ENDLESS)
        await_busy(server, num_waiting=1)
        server.process.send_signal(number)
        await_draining(server)
        server.process.send_signal(number)
        assert last_event(lines)["error"]["type"] == "server_error"
    assert queued.response().status_code == 503
    assert server.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_open_connections_that_ask_nothing_do_not_hold_the_end_up(start_light_server: StartServer) -> None:
    server = start_light_server(constants={"orcinus.server.process.server._CLOSE_TIMEOUT_S": 600})
    with httpx.Client() as client:
        assert client.get(f"{server.url}/live").status_code == 200
        server.terminate()
        assert server.wait(PATIENCE_S) == 0


def test_a_client_that_does_not_read_its_stream_does_not_hold_the_end_up(start_light_server: StartServer) -> None:
    patience = {"orcinus.server.process.server._CLOSE_TIMEOUT_S": 0.5}
    server = start_light_server("--drain-timeout-s", "0.1", constants=patience)
    with reading_nothing(server, {**LONG, "max_tokens": 1000, "n": 8, "logprobs": 20, "stream": True}):
        until(lambda: server.metric('orcinus_requests_total{outcome="length"}') == 8, "it is still generated")
        assert server.metric("orcinus_http_requests_in_progress") == 2
        server.terminate()
        assert server.wait(PATIENCE_S) == 0
    assert "were cut off" in server.log
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_a_signal_while_the_model_loads_ends_at_once(start_server: StartServer) -> None:
    server = start_server()
    until(server.engine, "the engine was not started")
    children = server.children()
    for child in children:
        child.send_signal(signal.SIGINT)
    server.terminate()
    assert server.wait(PATIENCE_S) == 0
    assert_all_end(children)
    assert "Traceback" not in server.log
    assert "is ready" not in server.log


@pytest.mark.slow
def test_an_engine_that_is_frozen_does_not_hold_the_end_up(start_light_server: StartServer) -> None:
    server = start_light_server()
    assert server.get("/ready").status_code == 200
    children = server.children()
    until(server.engine, "there is no engine").send_signal(signal.SIGSTOP)
    server.terminate()
    assert server.wait(PATIENCE_S) == 0
    assert_all_end(children)


# --- killed ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_is_killed_while_it_loads_leaves_no_process(start_server: StartServer) -> None:
    server = start_server()
    until(server.engine, "the engine was not started")
    children = server.children()
    server.process.kill()
    assert_all_end(children)


def test_a_server_that_is_killed_while_it_serves_leaves_no_process_and_no_port(start_server: StartServer) -> None:
    port = str(free_port())
    server = start_server("--port", port)
    assert server.http.post("/v1/completions", json=REGEX, timeout=60).status_code == 200
    with streaming(server, ENDLESS):
        children = server.children()
        assert process_running("orcinus.engine.grammar.trial_process", children) is not None
        server.process.kill()
        again = start_server("--port", port)
        assert_all_end(children)
    assert again.get("/ready").status_code == 200


@pytest.mark.slow
def test_a_server_that_is_killed_while_it_drains_leaves_no_process(start_held: StartServer) -> None:
    server = start_held("--drain-timeout-s", "600")
    with streaming(server, ENDLESS):
        children = server.children()
        server.terminate()
        await_draining(server)
        until(server.engine, "there is no engine").send_signal(signal.SIGSTOP)  # nor does it have to do anything for it
        server.process.kill()
        assert_all_end(children)


# --- and again ------------------------------------------------------------------------------------------


def test_a_server_starts_at_once_on_the_port_of_one_that_just_ended(start_held: StartServer, gate: StepGate) -> None:
    port = str(free_port())
    first = start_held("--port", port)
    with streaming(first, LONG) as lines:  # its connection is closed by the server, and lingers
        first.terminate()
        await_draining(first)
        gate.open()
        assert last_event(lines)["choices"]
    assert first.wait(PATIENCE_S) == 0
    assert start_held("--port", port).get("/ready").status_code == 200


@pytest.mark.slow
def test_the_end_of_its_terminal_ends_neither_the_server_nor_its_engine_and_has_keys_read_again(
    tmp_path: Path, start_light_server: StartServer
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    server = start_light_server("--host", "::", "--api-key-file", str(keys))
    assert server.url.startswith("http://127.0.0.1:")  # and it answers there
    engine = server.engine()
    assert engine is not None
    keys.write_text("new\n")
    for process in (engine, psutil.Process(server.pid)):
        process.send_signal(signal.SIGHUP)
    until(lambda: "API keys read again: 1 are valid" in server.log, "the keys were not read again")
    answer = server.http.post("/v1/completions", json={"prompt": "a"}, headers={"authorization": "Bearer new"})
    assert answer.status_code == 200
    assert server.engine() == engine
    server.terminate()
    assert server.wait() == 0


@pytest.mark.slow
def test_signals_that_mean_nothing_end_neither_the_server_nor_a_stream(start_held: StartServer, gate: StepGate) -> None:
    server = start_held()
    with streaming(server, LONG) as lines:
        processes = [psutil.Process(server.pid), *server.children()]
        for process in processes:
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGUSR2)
        gate.open()
        assert last_event(lines)["choices"]
    assert all(is_alive(process) for process in processes)
    gate.hold()
    with streaming(server, LONG) as lines:
        server.terminate()
        await_draining(server)
        psutil.Process(server.pid).send_signal(signal.SIGUSR1)
        gate.open()
        assert last_event(lines)["choices"]
    assert server.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_one_who_watches_sees_the_drain_and_holds_up_no_end(start_held: StartServer, gate: StepGate) -> None:
    server = start_held()
    with streaming(server, LONG) as answer, server.http.stream("GET", "/events", timeout=60) as response:
        events = (json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line)
        assert next(events)["status"] == "ready"
        server.terminate()
        until(lambda: next(events)["status"] == "draining", "it was not seen")
        gate.open()
        statuses = [event["status"] for event in events]
        assert [*answer][-2:] == ["data: [DONE]", ""]
    assert set(statuses) <= {"draining", "dead"}
    assert statuses[-1] == "dead"
    assert server.wait() == 0
    assert "were cut off" not in server.log
