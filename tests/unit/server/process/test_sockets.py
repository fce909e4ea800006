"""Unix sockets, the metrics' port, and proxies whose headers are believed: over real sockets."""

import asyncio
import logging
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from orcinus.config.settings import SettingsError, load_settings
from orcinus.server.http.connection import _plain_address
from orcinus.server.process import metrics_listener
from orcinus.server.process.health_check import connections, is_ready
from orcinus.server.process.listening import ListenError, listen_on_file, remove_file_of
from tests.certificates import make_certificate
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, listening, metrics_port_of, serving

ACCESS = "orcinus.server.access"


async def ask(port: int, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        return await client.get(path, headers=headers)


# --- Unix sockets ---------------------------------------------------------------------------------------


async def test_a_unix_socket_serves_every_host(served: Serving, tmp_path: Path) -> None:
    path = tmp_path / "orcinus.sock"
    async with listening(served, uds=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://llm.example.com") as client:
            answer = await client.post("/v1/completions", json={"prompt": "ab"})
            assert answer.json()["choices"][0]["text"] == "Hello"
            assert (await client.get("/live")).status_code == 200


async def test_hosts_that_are_listed_hold_on_a_unix_socket_too(served: Serving, tmp_path: Path) -> None:
    async with listening(served, uds=tmp_path / "orcinus.sock", allowed_host=["llm.example.com"]):
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "orcinus.sock"))
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("http://llm.example.com/live")).status_code == 200
            assert (await client.get("http://evil.example.com/live")).status_code == 400


def test_a_socket_that_a_server_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "orcinus.sock"
    listen_on_file(path).close()
    assert path.exists()
    with listen_on_file(path), pytest.raises(ListenError, match="a process listens there"):
        listen_on_file(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="no socket"):
        listen_on_file(path)
    remove_file_of(path)
    assert path.read_text() == "data"


def test_the_file_of_a_socket_is_removed_unless_another_server_has_it(tmp_path: Path) -> None:
    path = tmp_path / "orcinus.sock"
    with listen_on_file(path):
        remove_file_of(path)
        assert path.exists()
    remove_file_of(path)
    assert not path.exists()


def test_paths_that_can_hold_no_socket_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"at most 107 bytes, got \d+"):
        load_settings(uds=tmp_path / ("x" * 108))
    with pytest.raises(SettingsError, match="there is no directory"):
        load_settings(uds=tmp_path / "nowhere" / "orcinus.sock")
    with pytest.raises(SettingsError, match=rf"{tmp_path} is a directory"):
        load_settings(uds=tmp_path)


# --- the metrics' port ----------------------------------------------------------------------------------


async def test_metrics_have_a_port_of_their_own_and_leave_the_main_one(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, FakeExecutor(says("Hello")), metrics_port=0) as served,
        listening(served, metrics_port=0) as (server, port),
    ):
        own = metrics_port_of(server)
        statuses = {path: [(await ask(p, path)).status_code for p in (port, own)] for path in PATHS}
        document = (await ask(port, "/openapi.json")).json()
    assert statuses == PATHS
    assert "/metrics" not in document["paths"]
    assert "/ready" in document["paths"]


PATHS = {
    "/metrics": [404, 200],
    "/live": [200, 200],
    "/ready": [200, 200],
    "/health": [200, 200],
    "/version": [200, 404],
    "/v1/models": [200, 404],
    "/": [200, 404],
}


async def test_nothing_is_generated_on_the_metrics_port(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, FakeExecutor(says("Hello")), metrics_port=0) as served,
        listening(served, metrics_port=0) as (server, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{metrics_port_of(server)}") as client,
    ):
        assert (await client.post("/v1/completions", json={"prompt": "ab"})).status_code == 404


async def test_metrics_stay_on_the_main_port_where_they_have_none(served: Serving) -> None:
    async with listening(served) as (_, port):
        assert (await ask(port, "/metrics")).status_code == 200


async def test_a_server_that_is_full_can_still_be_scraped_and_speaks_no_tls_there(tmp_path: Path) -> None:
    pair = make_certificate(tmp_path)
    async with (
        serving(tmp_path, FakeExecutor(says("Hello")), metrics_port=0) as served,
        listening(served, metrics_port=0, max_connections=1, **pair.settings) as (server, _),
    ):
        shared = server._metrics_listener._shared
        assert shared.max_connections == metrics_listener.MAX_CONNECTIONS
        answer = await ask(metrics_port_of(server), "/metrics")
        assert answer.status_code == 200
        assert "date" in answer.headers


async def test_the_metrics_port_has_the_same_hosts(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, FakeExecutor(says("Hello")), metrics_port=0) as served,
        listening(served, metrics_port=0, uds=tmp_path / "orcinus.sock") as (server, _),
    ):
        assert (await ask(metrics_port_of(server), "/metrics", host="evil.example.com")).status_code == 400


# --- proxies --------------------------------------------------------------------------------------------


async def clients_in_the_log(
    served: Serving, caplog: pytest.LogCaptureFixture, headers: Mapping[str, str], **settings: Any
) -> str:
    """What the access log says of a request with these headers."""
    caplog.clear()
    async with listening(served, **settings) as (_, port):
        with caplog.at_level(logging.INFO, ACCESS):
            assert (await ask(port, "/v1/models", **headers)).status_code == 200
    [record] = [each for each in caplog.records if each.name == ACCESS]
    return record.getMessage()


async def test_a_proxy_is_believed_where_it_is_listed_and_nobody_otherwise(
    served: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    told = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}
    assert "client=127.0.0.1" in await clients_in_the_log(served, caplog, told)
    for trusted in ("127.0.0.1", "127.0.0.0/8", "*"):
        line = await clients_in_the_log(served, caplog, told, forwarded_allow_ips=[trusted])
        assert "client=203.0.113.7" in line
    assert "client=127.0.0.1" in await clients_in_the_log(served, caplog, told, forwarded_allow_ips=["10.0.0.0/8"])


async def test_the_first_address_that_no_trusted_proxy_has_is_the_client(
    served: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    """What a client wrote itself stands before what the proxies have added."""
    told = {"x-forwarded-for": "1.1.1.1, 203.0.113.7, 10.1.2.3"}
    line = await clients_in_the_log(served, caplog, told, forwarded_allow_ips=["127.0.0.1", "10.0.0.0/8"])
    assert "client=203.0.113.7" in line


async def test_what_is_no_address_breaks_no_line_of_the_log(served: Serving, caplog: pytest.LogCaptureFixture) -> None:
    told = {"x-forwarded-for": "unknown id=1 " + "x" * 300}
    line = await clients_in_the_log(served, caplog, told, forwarded_allow_ips=["*"])
    assert line.endswith("client=-")


@pytest.mark.parametrize("name", ["x-forwarded-host", "forwarded", "x-original-host"])
async def test_a_trusted_proxy_opens_no_host_that_is_not_served(served: Serving, name: str) -> None:
    """A web page reaches a loopback address as a proxy on the same machine does, and writes what headers it likes."""
    async with listening(served, forwarded_allow_ips=["127.0.0.1"]) as (_, port):
        answer = await ask(port, "/live", host="evil.example.com", **{name: "localhost"})
        assert answer.status_code == 400


def test_proxies_are_addresses_or_networks() -> None:
    settings = load_settings(forwarded_allow_ips="10.1.2.3/8, [::1], *")
    assert settings.forwarded_allow_ips == ("10.0.0.0/8", "::1", "*")
    with pytest.raises(SettingsError, match="a network such as"):
        load_settings(forwarded_allow_ips=["nginx"])


def test_an_address_of_ipv4_is_one_on_a_socket_for_both_families() -> None:
    assert _plain_address(("::ffff:10.0.0.1", 5)) == ("10.0.0.1", 5)
    assert _plain_address(("2001:db8::1", 5)) == ("2001:db8::1", 5)
    assert _plain_address(None) is None


# --- the health check -----------------------------------------------------------------------------------


async def test_the_health_check_reaches_unix_sockets_and_tls(served: Serving, tmp_path: Path) -> None:
    pair = make_certificate(tmp_path)
    socket_path = str(tmp_path / "orcinus.sock")

    async def check(**environment: str) -> bool:
        [connection] = connections(environment)
        return await asyncio.to_thread(is_ready, connection)

    async with listening(served, **pair.settings) as (_, port):
        tls = {"ORCINUS_SSL_CERTFILE": str(pair.certfile)}
        assert await check(ORCINUS_PORT=str(port), **tls)
        assert not await check(ORCINUS_PORT=str(port))
    assert not await check(ORCINUS_UDS=socket_path)
    async with listening(served, uds=Path(socket_path)):
        assert await check(ORCINUS_UDS=socket_path)
    async with listening(served, uds=Path(socket_path), **pair.settings):
        assert await check(ORCINUS_UDS=socket_path, **tls)
