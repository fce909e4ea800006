"""The sockets that the server listens on: one for each address that the host stands for, all with one port; or one in
the file system."""

import contextlib
import errno
import socket
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orcinus.engine.errors import OrcinusError

BACKLOG = 2048
_SOCKET_MODE = 0o666  # connecting is writing, and the proxy is another user
_MAX_TRIES = 16  # to find a port that is free on all addresses

# What an address that the system does not have fails with: another one of the same name may do.
_NOT_THERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class ListenError(OrcinusError):
    """The address cannot be listened on."""


def listen(host: str, port: int, flag: str = "--port") -> list[socket.socket]:
    """Return listening sockets on all addresses of `host`, `::` being those of IPv4, too; port 0 is any free one.

    Raises `ListenError`, which names the flag that takes another port.
    """
    try:
        addresses = _addresses_of(host, port)
        for _ in range(_MAX_TRIES - 1):
            try:
                return _listen_on_all(addresses, port)
            except OSError as error:
                if port != 0 or error.errno != errno.EADDRINUSE:
                    raise
        return _listen_on_all(addresses, port)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        hint = f"; {flag} takes another one" if error.errno == errno.EADDRINUSE else ""
        raise ListenError(f"cannot listen on {host} port {port}: {reason}{hint}") from error


def listen_on_file(path: Path) -> socket.socket:
    """Return a listening Unix socket at `path`, in the place of one that nobody listens on any more.

    Raises `ListenError`.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        path.chmod(_SOCKET_MODE)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def remove_file_of(path: Path) -> None:
    """Remove the file of a Unix socket that was closed, unless another server listens there by now."""
    with contextlib.suppress(OSError):
        _remove_stale(path)


def _remove_stale(path: Path) -> None:
    """Remove a socket on which nobody listens. Raises `OSError` where somebody does, or where there is something else.

    A server that was killed leaves its socket behind.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "a process listens there; --uds takes another one")
    path.unlink()


def _addresses_of(host: str, port: int) -> list[_Address]:
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _listen_on_all(addresses: Sequence[_Address], port: int) -> list[socket.socket]:
    """Return a socket for each address that the system has. Raises `OSError` where one is taken, or there is none."""
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    with ExitStack() as opened:
        for family, address in addresses:
            try:
                listener = opened.enter_context(_listen_on(family, address, port))
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise
                missing = error
            else:
                listeners.append(listener)
                port = listener.getsockname()[1]
        if missing is not None and not listeners:
            raise missing
        opened.pop_all()
    return listeners


def _listen_on(family: socket.AddressFamily, address: tuple[Any, ...], port: int) -> socket.socket:
    """Return a socket on one address, which has a scope where it is one of a link alone (`fe80::1%eth0`)."""
    host, _, *scope = address
    is_any = family == socket.AF_INET6 and host == "::"
    return socket.create_server(
        (host, port, *scope),
        family=family,
        backlog=BACKLOG,
        dualstack_ipv6=is_any and socket.has_dualstack_ipv6(),
    )
