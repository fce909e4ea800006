"""A real server: on a Unix socket, over TLS, with a port for its metrics, with lines of JSON, with traces."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.certificates import Pair, make_certificate
from tests.integration.step_gate import CONSTANT as GATE
from tests.server_process import LIGHT, ROOT, ServerProcess, StartServer, until

pytestmark = pytest.mark.slow

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
BODY = {"prompt": "On and on", "max_tokens": 8, "ignore_eos": True}


def run(*args: str) -> str:
    """What a command of ours prints."""
    command = [sys.executable, "-m", "orcinus.server.cli", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines_of(server: ServerProcess) -> list[dict[str, Any]]:
    """The log, every line of which must be an object."""
    return [json.loads(line) for line in server.lines]


def test_commands_reach_a_unix_socket_which_is_gone_with_its_server(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "orcinus.sock"
    server = start_server("--uds", str(path), "--metrics-port", "0", module=LIGHT)
    assert server.url == f"unix:{path}"
    assert server.http.post("/v1/completions", json=BODY).json()["usage"]["completion_tokens"] == 8
    assert server.get("/metrics").status_code == 404
    assert server.get("/ready").status_code == 200
    assert run("chat", "--base-url", server.url, "--max-tokens", "4", "Hello").strip()
    load = ("--num-requests", "2", "--output-tokens", "4", "--prompt-tokens", "8")
    assert re.search(r"Successful requests: +2\n", run("bench", "serve", "--base-url", server.url, *load))
    match = until(lambda: re.search(r"metrics are on port (\d+)", server.log), "the port was not said")
    metrics = httpx.get(f"http://127.0.0.1:{match[1]}/metrics", trust_env=False)
    assert "orcinus_generation_tokens_total" in metrics.text
    server.terminate()
    assert server.wait(60) == 0
    assert not path.exists()


def test_commands_reach_a_server_that_speaks_tls(start_server: StartServer, tmp_path: Path) -> None:
    pair = make_certificate(tmp_path)
    flags = ("--ssl-certfile", str(pair.certfile), "--ssl-keyfile", str(pair.keyfile))
    server = start_server(*flags, module=LIGHT)
    assert server.url.startswith("https://")
    trust = ("--base-url", server.url, "--cacert", str(pair.certfile))
    assert run("chat", *trust, "--max-tokens", "4", "Hello").strip()
    load = ("--num-requests", "2", "--output-tokens", "4", "--prompt-tokens", "8")
    assert re.search(r"Successful requests: +2\n", run("bench", "serve", *trust, *load))


def test_a_stream_goes_on_while_the_certificate_is_replaced(start_server: StartServer, tmp_path: Path) -> None:
    """The next connection has the new one: in a process of its own, whose event loop is uvloop's."""
    pair, new, gate = make_certificate(tmp_path), make_certificate(tmp_path, "new"), tmp_path / "gate"
    flags = ("--ssl-certfile", str(pair.certfile), "--ssl-keyfile", str(pair.keyfile))
    constants = {GATE: str(gate), "orcinus.server.process.tls.LOOK_EVERY_S": 0.01}
    server = start_server(*flags, module=LIGHT, constants=constants)
    with (
        httpx.Client(base_url=server.url, verify=pair.context, timeout=180) as client,
        client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        pair.replace_by(new)
        until(lambda: is_trusted(server, new), "the new certificate was not served")
        gate.touch()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def is_trusted(server: ServerProcess, pair: Pair) -> bool:
    try:
        return httpx.get(f"{server.url}/live", verify=pair.context, trust_env=False).status_code == 200
    except httpx.ConnectError:
        return False


def test_every_line_is_an_object_with_the_ids_of_its_request(start_server: StartServer) -> None:
    server = start_server("--log-format", "json", module=LIGHT)
    traceparent = f"00-{TRACE_ID}-b7ad6b7169203331-01"
    headers = {"x-request-id": "my-id", "traceparent": traceparent}
    response = server.http.post("/v1/completions", json=BODY, headers=headers)
    assert response.headers["x-request-id"] == "my-id"
    server.terminate()
    assert server.wait(60) == 0
    [access] = [line for line in lines_of(server) if line["logger"] == "orcinus.server.access"]
    assert (access["request_id"], access["trace_id"], access["status"]) == ("my-id", TRACE_ID, 200)
    assert access["answer_id"] == response.json()["id"]


def test_a_failure_to_start_is_an_object_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orcinus.server.cli", "serve", "--log-format", "json", "--port", "0"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=180)
    assert done.returncode == 1
    last = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert last["level"] == "error"
    assert done.stdout == ""


# --- traces ---------------------------------------------------------------------------------------------


class Collector(HTTPServer):
    """Takes spans as any collector does (OTLP over HTTP)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    def spans(self, name: str = "") -> list[Any]:
        scopes = [scope for each in self.requests for spans in each.resource_spans for scope in spans.scope_spans]
        return [span for scope in scopes for span in scope.spans if span.name.startswith(name)]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("is_streamed", "name"), [(False, "orcinus"), (True, "llm")])
def test_spans_of_a_real_server_reach_a_collector(
    start_server: StartServer, collector: Collector, is_streamed: bool, name: str
) -> None:
    environment = {"OTEL_SERVICE_NAME": name if name == "llm" else "", "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    server = start_server("--otlp-traces-endpoint", collector.url, module=LIGHT, environment=environment)
    headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    body = {**BODY, "stream": is_streamed, "model": "orcinus-demo"}
    assert server.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    server.terminate()
    assert server.wait(60) == 0
    [span] = collector.spans("text_completion orcinus-demo")
    assert span.trace_id.hex() == TRACE_ID
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert {each.name for each in collector.spans()} == {span.name, "prepare", "queue", "prefill", "decode"}
    for part in collector.spans():
        assert part.trace_id == span.trace_id
        assert span.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano
        assert part.end_time_unix_nano <= span.end_time_unix_nano
    resource = {
        each.key: each.value.string_value for each in collector.requests[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == name


def test_an_engine_that_is_killed_leaves_a_span_of_its_restart(
    start_server: StartServer, collector: Collector, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    constants = {GATE: str(gate)}
    server = start_server("--otlp-traces-endpoint", collector.url, module=LIGHT, constants=constants)
    engine = until(server.engine, "there was no engine")
    with server.http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        engine.kill()
        gate.touch()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    server.terminate()
    assert server.wait(60) == 0
    [restart], [decode] = collector.spans("restart"), collector.spans("decode")
    assert decode.start_time_unix_nano <= restart.start_time_unix_nano < restart.end_time_unix_nano
    assert restart.end_time_unix_nano <= decode.end_time_unix_nano


def test_a_collector_that_is_gone_keeps_no_server_from_ending(start_server: StartServer) -> None:
    server = start_server("--otlp-traces-endpoint", "http://127.0.0.1:9/v1/traces", module=LIGHT)
    assert server.http.post("/v1/completions", json=BODY).status_code == 200
    server.terminate()
    assert server.wait(60) == 0
