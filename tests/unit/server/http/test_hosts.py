"""Which hosts a request may name, over a real socket: the header, absolute targets, and the list."""

from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from orcinus.server.http.hosts import HostPolicy, is_loopback
from tests.unit.server.http.test_connections import connect
from tests.unit.server.serving import listening, serving


def is_served(policy: HostPolicy, host: str, target: bytes = b"/") -> bool:
    try:
        policy.check([(b"host", host.encode("latin-1"))], target, "1.1")
    except HTTPException:
        return False
    return True


@pytest.mark.parametrize("listen_host", ["127.0.0.1", "::1", "[::1]", "localhost", "LOCALHOST.", "127.8.0.1", "::1%lo"])
def test_on_a_loopback_address_loopback_names_are_served_and_no_others(listen_host: str) -> None:
    policy = HostPolicy(listen_host)
    for host in (
        "localhost",
        "localhost:8000",
        "LOCALHOST:8000",
        "localhost.",
        "localhost.:8000",
        "app.localhost",
        "127.0.0.1",
        "127.0.0.1:9",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "127.1:8000",
        "host.docker.internal:8000",
        " localhost ",
    ):
        assert is_served(policy, host), host
    for host in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io",
        "evillocalhost",
        "192.168.0.1",
        "0.0.0.0",
        "[::2]",
        "[::ffff:10.0.0.1]",
        "",
        ":8000",
        "::1",
        "[::1",
        "a b",
        "localhost/evil",
        "evil@localhost",
        "localhost:port",
        "localhost:99999",
        "é",
    ):
        assert not is_served(policy, host), host


def test_elsewhere_every_host_is_served_that_is_one() -> None:
    policy = HostPolicy("0.0.0.0")
    for host in ("evil.example", "10.0.0.1:8000", "[2001:db8::1]:8000"):
        assert is_served(policy, host), host
    for host in ("", "a b", "::1", "a:b"):
        assert not is_served(policy, host), host


def test_what_is_listed_is_served_too() -> None:
    listed = ("Api.Example.com", "*.chat.example.com", "with-port.example:8443", "plain.example:80", "2001:db8::1")
    for policy in (HostPolicy("127.0.0.1", listed), HostPolicy("0.0.0.0", listed)):
        for host in (
            "api.example.com",
            "API.example.com.:8443",
            "a.chat.example.com",
            "a.b.chat.example.com:1",
            "with-port.example:8443",
            "plain.example",
            "[2001:DB8::1]:1",
            "localhost",
            "127.0.0.1:1",
        ):
            assert is_served(policy, host), host
        for host in (
            "example.com",
            "chat.example.com",
            "evilchat.example.com",
            "with-port.example",
            "with-port.example:1",
            "plain.example:8080",
            "api.example.com.evil.example",
        ):
            assert not is_served(policy, host), host


def test_addresses_are_served_beside_a_list_where_probes_come_from_elsewhere() -> None:
    assert is_served(HostPolicy("0.0.0.0", ("api.example.com",)), "10.0.0.7:8000")
    assert not is_served(HostPolicy("127.0.0.1", ("api.example.com",)), "10.0.0.7:8000")


def test_a_star_is_every_host() -> None:
    assert is_served(HostPolicy("127.0.0.1", ("*",)), "evil.example")


def test_of_an_absolute_target_its_own_host_counts_and_not_the_header() -> None:
    policy = HostPolicy("127.0.0.1")
    assert is_served(policy, "evil.example", b"http://localhost:8000/live")
    assert is_served(policy, "localhost", b"HTTP://127.0.0.1?x")
    for target in (
        b"http://evil.example/live",
        b"http://evil.example:80",
        b"http://localhost@evil.example/",
        b"http:///",
    ):
        assert not is_served(policy, "localhost", target), target
    assert not is_served(policy, "a b", b"http://localhost/")


@pytest.mark.parametrize(
    ("listen_host", "expected"), [("10.0.0.1", False), ("::", False), ("0.0.0.0", False), ("no-such.invalid", False)]
)
def test_what_is_a_loopback_address_is_known(listen_host: str, expected: bool) -> None:
    assert is_loopback(listen_host) == expected


@pytest.mark.parametrize(
    ("head", "status", "words"),
    [
        (b"GET /live HTTP/1.1\r\n", 400, b"must have a Host header, got none"),
        (b"GET /live HTTP/1.1\r\nhost: localhost\r\nHost: localhost\r\n", 400, b"one Host header, got 2"),
        (b"GET /live HTTP/1.0\r\nhost: localhost\r\nhost: localhost\r\n", 400, b"one Host header, got 2"),
        (b"GET /live HTTP/1.1\r\nhost: evil.example\r\n", 400, b"--allowed-host"),
        (b"GET http://evil.example/live HTTP/1.1\r\nhost: localhost\r\n", 400, b"--allowed-host"),
        (b"GET http://localhost/live HTTP/1.1\r\nhost: localhost\r\n", 200, b"live"),
        (b"GET /live HTTP/1.0\r\n", 200, b"live"),
        (b"GET /live HTTP/1.1\r\nhost: LOCALHOST:1\r\nconnection: close\r\n", 200, b"live"),
    ],
)
async def test_a_request_names_one_host_that_is_served_here(
    tmp_path: Path, head: bytes, status: int, words: bytes
) -> None:
    async with serving(tmp_path) as served, listening(served) as (_, port), connect(port) as client:
        client.writer.write(head + (b"" if status == 400 else b"connection: close\r\n") + b"\r\n")
        assert await client.status() == status
        assert words in await client.reader.read()


async def test_a_refused_head_has_no_body(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, listening(served) as (_, port), connect(port) as client:
        client.writer.write(b"HEAD /live HTTP/1.1\r\nhost: evil.example\r\n\r\n")
        assert await client.status() == 400
        assert (await client.reader.read()).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "settings", [{"allowed_host": ("api.example",)}, {"host": "0.0.0.0"}, {"allowed_host": ("*",)}]
)
async def test_the_settings_say_which_are_served(tmp_path: Path, settings: dict[str, Any]) -> None:
    async with serving(tmp_path) as served, listening(served, **settings) as (_, port), connect(port) as client:
        client.writer.write(b"GET /live HTTP/1.1\r\nhost: api.example\r\nconnection: close\r\n\r\n")
        assert await client.status() == 200
