"""The addresses that are listened on, tried by connecting to them."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from orcinus.server.process import listening
from orcinus.server.process.listening import ListenError, listen


@contextmanager
def listening_on(host: str, port: int = 0) -> Iterator[tuple[list[socket.socket], int]]:
    with ExitStack() as opened:
        listeners = [opened.enter_context(listener) for listener in listen(host, port)]
        [found] = {listener.getsockname()[1] for listener in listeners}
        yield listeners, found


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=30).close()
    except OSError:
        return False
    return True


has_ipv6 = socket.has_ipv6
if has_ipv6:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        has_ipv6 = False
needs_ipv6 = pytest.mark.skipif(not has_ipv6, reason="this machine has no IPv6")


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "[::]"])
def test_every_address_means_those_of_both_families(host: str) -> None:
    with listening_on(host) as (_, port):
        assert answers("127.0.0.1", port)
        assert answers("::1", port)


@needs_ipv6
@pytest.mark.parametrize(("host", "other"), [("::1", "127.0.0.1"), ("127.0.0.1", "::1"), ("0.0.0.0", "::1")])
def test_an_address_means_itself(host: str, other: str) -> None:
    with listening_on(host) as (_, port):
        assert answers("127.0.0.1" if host == "0.0.0.0" else host, port)
        assert not answers(other, port)


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[socket.AddressFamily, tuple[Any, ...]]) -> None:
    found = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


V4, V6 = (socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0, 0, 0))


@needs_ipv6
@pytest.mark.parametrize("addresses", [(V4, V6, V4), (V6, V4)])
def test_a_name_means_all_of_its_addresses_with_one_port(monkeypatch: pytest.MonkeyPatch, addresses: Any) -> None:
    resolving(monkeypatch, *addresses)
    with listening_on("some-name") as (listeners, port):
        monkeypatch.undo()
        assert len(listeners) == 2
        assert answers("127.0.0.1", port)
        assert answers("::1", port)


def test_an_address_of_a_name_that_the_system_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, (socket.AF_INET6, ("2001:db8::1", 0, 0, 0)), V4)
    with listening_on("some-name") as (listeners, _):
        assert len(listeners) == 1
    resolving(monkeypatch, (socket.AF_INET, ("192.0.2.1", 0)))
    with pytest.raises(ListenError, match="some-name port 0: "):
        listen("some-name", 0)


@needs_ipv6
def test_an_address_of_a_name_whose_port_is_taken_is_an_error_that_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening_on("::1") as (_, port):
        resolving(monkeypatch, V4, V6)
        with pytest.raises(ListenError, match=f"some-name port {port}: Address already in use; --port takes another"):
            listen("some-name", port)
        monkeypatch.undo()
        with listening_on("127.0.0.1", port):
            pass


@needs_ipv6
def test_a_free_port_is_one_that_is_free_on_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, V4, V6)
    taken: list[int] = []
    create = socket.create_server

    def take_the_first(address: Any, **options: Any) -> socket.socket:
        if options["family"] == socket.AF_INET6 and len(taken) < 3:
            taken.append(address[1])
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return create(address, **options)

    monkeypatch.setattr(socket, "create_server", take_the_first)
    with listening_on("some-name") as (listeners, _):
        assert len(listeners) == 2
    assert len(taken) == 3
    taken.clear()
    monkeypatch.setattr(listening, "_MAX_TRIES", 2)
    with pytest.raises(ListenError):
        listen("some-name", 0)


def test_the_scope_of_an_address_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    resolving(monkeypatch, (socket.AF_INET6, ("fe80::1", 0, 0, 7)))

    def note(address: Any, **options: Any) -> socket.socket:
        asked.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_server", note)
    listen("fe80::1%eth0", 0)[0].close()
    assert asked == [("fe80::1", 0, 0, 7)]
