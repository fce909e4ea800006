"""What a connection answers itself, where there is no request that the app could answer: with an id, a date, a line in
the log and a count, as any other answer.

Knows errors, and nothing of what brought them about.
"""

import secrets
from collections.abc import Callable, Iterable

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from orcinus.server.errors import speaks_anthropic, to_response
from orcinus.server.http.origins import OriginPolicy
from orcinus.server.http.throttled_log import ThrottledLog

Headers = Iterable[tuple[bytes, bytes]]


class Refusals:
    """`on_refused` is told the status of each; `root_path` is what requests may begin with."""

    def __init__(
        self, on_refused: Callable[[int], None], log: ThrottledLog, origins: OriginPolicy, root_path: str = ""
    ) -> None:
        self._on_refused = on_refused
        self._log = log
        self._origins = origins
        self._root_path = root_path

    def encode(
        self, error: HTTPException, default_headers: Headers, target: bytes = b"", request_headers: Headers = ()
    ) -> bytes:
        """Return the error as a response of its own, after which the connection is closed, and take note of it.

        `target` and `request_headers` are what is known of the request.
        """
        request_id = secrets.token_hex(16)
        path = target.partition(b"?")[0].decode("latin-1")
        if path.startswith(f"{self._root_path}/"):
            path = path[len(self._root_path) :]
        response = to_response(error, path, request_id, request_headers)
        headers = {**response.headers, **self._origins.headers(request_headers)}
        headers |= {"x-request-id": request_id, "connection": "close"}
        if speaks_anthropic(path, request_headers):
            headers["request-id"] = request_id
        lines = [b"%b: %b\r\n" % header for header in default_headers]
        lines += [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        self.note(error, request_id)
        return b"".join([STATUS_LINE[response.status], *lines, b"\r\n", response.body])

    def note(self, error: HTTPException, request_id: str = "-") -> None:
        """Log and count an error, which could not be sent where it has no id."""
        status, reason = error.status_code, ascii(error.detail)[1:-1]
        self._on_refused(status)
        self._log.line(f"more connections closed with {status}", "connection %d id=%s: %s", status, request_id, reason)

    def note_unread(self, timeout_s: float) -> None:
        """Log that a client read nothing of what was sent to it."""
        what = "more connections closed whose clients read nothing"
        self._log.line(what, "a connection is closed: the client read nothing for %g s", timeout_s)
