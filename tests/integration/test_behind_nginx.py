"""nginx before real servers, with the configurations of docs/proxies.md as they stand there, but for ports and paths.

A file opens the engine's gate: no token but the first comes before the client has seen the one before, so that an
answer which waits in a buffer is never complete.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Pair, make_certificate
from tests.integration.step_gate import CONSTANT as GATE
from tests.server_process import LIGHT, ROOT, ServerProcess, StartServer, until

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "proxies.md"
HOST = "llm.example.com"
BODY = {"prompt": "On and on", "max_tokens": 6, "ignore_eos": True, "temperature": 0}
FLAGS = ("--allowed-host", HOST, "--forwarded-allow-ips", "127.0.0.1")
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

BLOCKS = {
    title.strip(): text for title, text in re.findall(r"```nginx\n# ([^\n]*)\n(.*?)```", PAGE.read_text(), re.DOTALL)
}
SNIPPET, SERVER = BLOCKS["/etc/nginx/snippets/orcinus.conf"], BLOCKS["/etc/nginx/conf.d/orcinus.conf"]


def test_every_configuration_of_the_page_is_run_here() -> None:
    used = {"upstream: a Unix socket", "upstream: two replicas", "location: a prefix"}
    assert set(BLOCKS) == used | {"/etc/nginx/snippets/orcinus.conf", "/etc/nginx/conf.d/orcinus.conf"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


class Nginx:
    """A process of its own with this configuration, in `directory`."""

    def __init__(self, directory: Path, pair: Pair, text: str, snippet: str = SNIPPET) -> None:
        assert NGINX is not None
        self.port, self._pair, self._directory = free_port(), pair, directory
        (directory / "snippets").mkdir()
        (directory / "snippets" / "orcinus.conf").write_text(snippet)
        for name, value in (
            ("listen 443", f"listen 127.0.0.1:{self.port}"),
            (f"/etc/ssl/{HOST}.crt", str(pair.certfile)),
            (f"/etc/ssl/{HOST}.key", str(pair.keyfile)),
        ):
            assert name in text
            text = text.replace(name, value)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in kinds)
        (directory / "nginx.conf").write_text(
            f"user root;\ndaemon off;\npid {directory}/pid;\nerror_log {directory}/error.log;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{paths}{text}\n}}\n"
        )
        command = [NGINX, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log")]
        self.process = subprocess.Popen(command)
        until(self._listens, "nginx did not listen")

    def _listens(self) -> bool:
        assert self.process.poll() is None, (self._directory / "error.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def curl(self, path: str, *options: str, body: dict[str, Any] | None = None) -> subprocess.Popen[str]:
        """A client that writes what it reads as it comes."""
        curl = shutil.which("curl")
        assert curl is not None
        command = [curl, "-sN", "--cacert", str(self._pair.certfile), "--max-time", "180", *options]
        command += ["--connect-to", f"::127.0.0.1:{self.port}", f"https://{HOST}{path}"]
        if body is not None:
            command += ["-H", "content-type: application/json", "-d", json.dumps(body)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def ask(self, path: str, *options: str, body: dict[str, Any] | None = None) -> str:
        with self.curl(path, *options, body=body) as client:
            output, _ = client.communicate()
        assert client.returncode == 0, (client.returncode, output)
        return output

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    if NGINX is None or shutil.which("curl") is None:
        pytest.skip("there is no nginx or no curl: apt-get install nginx-light curl")
    return make_certificate(tmp_path, HOST, names=f"DNS:{HOST}")


@pytest.fixture
def started() -> Iterator[list[Nginx]]:
    running: list[Nginx] = []
    yield running
    for each in running:
        each.close()


def port_of(server: ServerProcess) -> str:
    return server.url.rpartition(":")[2]


def num_answering(server: ServerProcess) -> float:
    """Return how many requests a server is answering, beside this one."""
    return server.metric("orcinus_http_requests_in_progress") - 1


def check_stream(nginx: Nginx, gate: Path, *options: str, path: str = "/v1/completions") -> None:
    """See the first event before the others exist, and then all of them."""
    gate.unlink(missing_ok=True)
    with nginx.curl(path, *options, body={**BODY, "stream": True}) as client:
        assert client.stdout is not None
        first = client.stdout.readline()
        assert first.startswith("data: {"), first
        gate.touch()
        events = [first, *(line for line in client.stdout if line.strip())]
    assert client.returncode == 0
    assert events[-1].strip() == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_one_server_and_every_version_of_http(
    start_server: StartServer, tmp_path: Path, pair: Pair, started: list[Nginx]
) -> None:
    gate = tmp_path / "gate"
    server = start_server(*FLAGS, module=LIGHT, constants={GATE: str(gate)})
    nginx = Nginx(tmp_path, pair, SERVER.replace("127.0.0.1:8000", f"127.0.0.1:{port_of(server)}"))
    started.append(nginx)
    for version, number in (("--http1.0", "1"), ("--http1.1", "1.1"), ("--http2", "2")):
        shown = ("-o", "/dev/null", "-w", "%{http_code} %{http_version}")
        assert nginx.ask("/ready", version, *shown) in (f"200 {number}", f"200 {number}.1", f"200 {number}.0")
        check_stream(nginx, gate, version)
        whole = json.loads(nginx.ask("/v1/completions", version, body=BODY))
        assert whole["usage"]["completion_tokens"] == 6
    headers = nginx.ask("/v1/models", "-D", "-", "-H", "x-request-id: my-id", "-H", "x-forwarded-for: 203.0.113.7")
    assert re.search(r"^x-request-id: my-id\r?$", headers, re.MULTILINE | re.IGNORECASE)
    assert until(lambda: "id=my-id client=203.0.113.7" in server.log, "no line in the log")


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_streams_pass_whatever_nginx_buffers_over_a_unix_socket(
    start_server: StartServer, tmp_path: Path, pair: Pair, started: list[Nginx], buffering: str
) -> None:
    gate, path = tmp_path / "gate", tmp_path / "orcinus.sock"
    server = start_server("--uds", str(path), "--allowed-host", HOST, module=LIGHT, constants={GATE: str(gate)})
    assert server.url == f"unix:{path}"
    upstream = BLOCKS["upstream: a Unix socket"].replace("/run/orcinus/orcinus.sock", str(path))
    text = with_upstream(upstream)
    nginx = Nginx(tmp_path, pair, text, f"{SNIPPET}proxy_buffering {buffering};\n")
    started.append(nginx)
    check_stream(nginx, gate)
    assert json.loads(nginx.ask("/v1/completions", body=BODY))["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize("target", ["http://orcinus", "http://orcinus/"])
def test_a_prefix_whether_the_proxy_takes_it_off_or_not(
    start_server: StartServer, tmp_path: Path, pair: Pair, started: list[Nginx], target: str
) -> None:
    gate = tmp_path / "gate"
    server = start_server(*FLAGS, "--root-path", "/llm", module=LIGHT, constants={GATE: str(gate)})
    location = BLOCKS["location: a prefix"].replace("http://orcinus;", f"{target};")
    text = re.sub(r"    location / \{.*?\n    \}\n", location, SERVER, flags=re.DOTALL)
    nginx = Nginx(tmp_path, pair, text.replace("127.0.0.1:8000", f"127.0.0.1:{port_of(server)}"))
    started.append(nginx)
    check_stream(nginx, gate, path="/llm/v1/completions")
    document = json.loads(nginx.ask("/llm/openapi.json"))
    assert document["servers"] == [{"url": "/llm"}]
    assert "<html" in nginx.ask("/llm/").lower()


def test_two_replicas_share_requests_and_one_that_ends_costs_none(
    start_server: StartServer, tmp_path: Path, pair: Pair, started: list[Nginx]
) -> None:
    gate = tmp_path / "gate"
    servers = [start_server(*FLAGS, module=LIGHT, constants={GATE: str(gate)}) for _ in range(2)]
    upstream = BLOCKS["upstream: two replicas"]
    for number, server in enumerate(servers):
        upstream = upstream.replace(f"127.0.0.1:{8000 + number}", f"127.0.0.1:{port_of(server)}")
    nginx = Nginx(tmp_path, pair, with_upstream(upstream))
    started.append(nginx)
    clients = []
    for number in range(4):
        clients.append(nginx.curl("/v1/completions", body={**BODY, "stream": True}))
        until(lambda: sum(map(num_answering, servers)) == number + 1, "a request did not come")  # noqa: B023
    assert [num_answering(server) for server in servers] == [2, 2], "the one with the fewest gets it"
    servers[0].terminate()
    until(lambda: servers[0].get("/ready").status_code == 503, "it did not drain")
    late = nginx.curl("/v1/completions", body=BODY)
    until(lambda: num_answering(servers[1]) == 3, "the late one did not go to the other")
    gate.touch()
    for client in clients:
        output, _ = client.communicate()
        assert output.rstrip().endswith("data: [DONE]")
    assert json.loads(late.communicate()[0])["usage"]["completion_tokens"] == 6
    assert servers[0].wait(60) == 0
    for _ in range(4):
        assert json.loads(nginx.ask("/v1/completions", body=BODY))["usage"]["completion_tokens"] == 6


def test_a_rolling_restart_costs_no_request(
    start_server: StartServer, tmp_path: Path, pair: Pair, started: list[Nginx]
) -> None:
    """The second ends once the first is back: nginx would leave the first out for ten seconds, unless told not to."""
    servers = [start_server(*FLAGS, module=LIGHT) for _ in range(2)]
    ports = [port_of(server) for server in servers]
    upstream = BLOCKS["upstream: two replicas"]
    for number, port in enumerate(ports):
        upstream = upstream.replace(f"127.0.0.1:{8000 + number}", f"127.0.0.1:{port}")
    nginx = Nginx(tmp_path, pair, with_upstream(upstream))
    started.append(nginx)

    def answers() -> bool:
        return bool(json.loads(nginx.ask("/v1/completions", body=BODY))["usage"]["completion_tokens"] == 6)

    for number in range(2):
        servers[number].terminate()
        assert servers[number].wait(60) == 0
        restarted = start_server(*FLAGS, "--port", ports[number], module=LIGHT)
        assert answers()  # while it is away, or loads
        assert restarted.get("/ready").status_code == 200
        servers[number] = restarted
    assert all(answers() for _ in range(4))


def with_upstream(upstream: str) -> str:
    """The configuration of one server with another upstream."""
    text, count = re.subn(r"upstream orcinus \{.*?\n\}\n", lambda match: upstream, SERVER, flags=re.DOTALL)
    assert count == 1
    return text
