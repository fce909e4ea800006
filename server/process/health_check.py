"""The image's health check: `python -m orcinus.server.process.health_check` exits with 0 where /ready answers 200.

It reads `ORCINUS_HOST`, `ORCINUS_PORT`, `ORCINUS_UDS` and `ORCINUS_SSL_CERTFILE` as the server does, by the standard
library alone: it runs every few seconds.
"""

import http.client
import os
import socket
import ssl
import sys
from collections.abc import Mapping

_DEFAULT_PORT = 8000
_TIMEOUT_S = 4.0
_LOOPBACK = {"": ("127.0.0.1",), "0.0.0.0": ("127.0.0.1",), "::": ("::1", "127.0.0.1")}  # noqa: S104 - asked, not bound


class _SocketConnection(http.client.HTTPConnection):
    """A connection over a Unix socket."""

    def __init__(self, path: str, context: ssl.SSLContext | None) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path
        self._context = context

    def connect(self) -> None:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.settimeout(_TIMEOUT_S)
        self.sock = plain
        plain.connect(self._path)
        if self._context is not None:
            self.sock = self._context.wrap_socket(plain)


def main() -> int:
    return 0 if any(map(is_ready, connections(os.environ))) else 1


def connections(environment: Mapping[str, str]) -> list[http.client.HTTPConnection]:
    """Return connections, not open yet, to all places where the server may listen."""
    context = _unverified() if environment.get("ORCINUS_SSL_CERTFILE") else None
    if path := environment.get("ORCINUS_UDS"):
        return [_SocketConnection(path, context)]
    if context is None:
        return [http.client.HTTPConnection(*address, timeout=_TIMEOUT_S) for address in addresses(environment)]
    return [
        http.client.HTTPSConnection(*address, timeout=_TIMEOUT_S, context=context) for address in addresses(environment)
    ]


def addresses(environment: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return where the server listens. A port that is a link to a Kubernetes service (`tcp://...`) is none."""
    host = environment.get("ORCINUS_HOST", "").strip("[]")
    port = environment.get("ORCINUS_PORT", "")
    number = int(port) if port.isascii() and port.isdigit() else _DEFAULT_PORT
    return [(loopback, number) for loopback in _LOOPBACK.get(host, (host,))]


def _unverified() -> ssl.SSLContext:
    """Return what takes any certificate: the server is this machine, by a name that its certificate may not have."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_ready(connection: http.client.HTTPConnection) -> bool:
    """Return whether new requests are taken there."""
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
