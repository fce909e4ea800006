"""How long a server makes others wait: a process of its own asks for /health again and again, and keeps the worst time.

Run as a program it is that process; it ends with its standard input.
"""

import socket
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_INTERVAL_S = 0.01


class PauseProbe:
    """Use it in `with`; afterwards `worst_s` is there."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.worst_s = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, self._url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "asking\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        output, _ = self._process.communicate(timeout=60)
        if error is None:
            self.worst_s = float(output)


def main(url: str) -> None:
    address = urlsplit(url)
    is_over = threading.Event()
    threading.Thread(target=_wait_for_end, args=(is_over,), daemon=True).start()
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        _ask(connection)
        print("asking", flush=True)
        worst_s = 0.0
        while not is_over.wait(_INTERVAL_S):
            worst_s = max(worst_s, _ask(connection))
    print(worst_s)


def _wait_for_end(is_over: threading.Event) -> None:
    sys.stdin.read()
    is_over.set()


def _ask(connection: socket.socket) -> float:
    started = time.perf_counter()
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        part = connection.recv(4096)
        assert part, "the server closed the connection"
        answer += part
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1])
