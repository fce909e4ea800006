"""The image's health check: `python -m orcinus.server.process.health_check` exits with 0 where /ready answers 200.

It reads `ORCINUS_HOST` and `ORCINUS_PORT` as the server does, by the standard library alone: it runs every few seconds.
"""

import http.client
import os
import sys
from collections.abc import Mapping

_DEFAULT_PORT = 8000
_TIMEOUT_S = 4.0
_LOOPBACK = {"": ("127.0.0.1",), "0.0.0.0": ("127.0.0.1",), "::": ("::1", "127.0.0.1")}  # noqa: S104 - asked, not bound


def main() -> int:
    return 0 if any(_is_ready(host, port) for host, port in addresses(os.environ)) else 1


def addresses(environment: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return where the server listens. A port that is a link to a Kubernetes service (`tcp://...`) is none."""
    host = environment.get("ORCINUS_HOST", "").strip("[]")
    port = environment.get("ORCINUS_PORT", "")
    number = int(port) if port.isascii() and port.isdigit() else _DEFAULT_PORT
    return [(loopback, number) for loopback in _LOOPBACK.get(host, (host,))]


def _is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
