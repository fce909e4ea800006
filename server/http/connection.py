"""The bounds of a connection, which uvicorn leaves open: how large the head of a request may be and how long it may
take, how much may come around a body and after an answer, how many requests may stand in line, how long a client may
read nothing, and how many connections there are.

A thin layer over uvicorn's protocol, whose parser refuses by itself what is no HTTP. Knows bytes and time-outs; nothing
of routes, keys or what is in a body.
"""

import asyncio
import functools
import logging
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from orcinus.server.errors import to_response
from orcinus.server.http.framing import FramedAnswer
from orcinus.server.http.parser import RequestParser

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_TARGET_BYTES = 8 * 1024
MAX_HEADERS = 100
MAX_IN_LINE = 16  # requests that a client sends without waiting for the answers to those before
HEAD_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 60.0
LINGER_S = 2.0  # for a client that still sends to read that it need not
MAX_LINGER_BYTES = 64 * 2**20
MAX_UNREAD_BYTES = 64 * 1024  # of a body: so much is read on after an answer, to keep the connection

_OTHER_FILES = 128  # that the process has open besides connections


def bounded_protocol(max_connections: int) -> Any:
    """Return what uvicorn makes a connection with (`uvicorn.Config(http=...)`), for so many of them at once at most."""
    return functools.partial(BoundedProtocol, _fit_open_files(max_connections))


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What goes past a bound is answered, where that is still possible, and closed."""

    def __init__(self, max_connections: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.parser = RequestParser(self)  # type: ignore[assignment]  # it does all that uvicorn asks of one
        self._app = self.app
        self.app = self._answer
        self._max_connections = max_connections
        self._refusal: HTTPException | None = None
        self._running: RequestResponseCycle | None = None
        self._num_bytes = 0  # of the message that is coming in
        self._num_body_bytes = 0
        self._num_header_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._num_lingering_bytes = 0
        self._is_last_answer = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            message = f"at most {self._max_connections} connections may be open at once: try again later"
            transport.write(_encode(HTTPException(503, message, {"retry-after": "1"})))
            transport.close()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that runs. uvicorn tells the one that came last, which may still stand in line behind it."""
        self._has_head()
        self._ignore_reader()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)
        self._leave_running()

    # --- what comes in --------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._linger_timer is not None:
            self._throw_away(data)
            return
        if not self._is_answering():
            self._await_head()
        self._num_bytes += len(data)
        super().data_received(data)
        num_around = self._num_bytes - self._num_body_bytes
        if num_around > MAX_HEAD_BYTES + self._num_body_bytes and self._linger_timer is None:
            self._refusal = HTTPException(
                431, f"a request may have at most {MAX_HEAD_BYTES} bytes besides its body, got {num_around} or more"
            )
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_header_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._refuse(414, f"the URL may have at most {MAX_TARGET_BYTES} bytes, got {len(self.url)} or more")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._num_header_bytes += len(name) + len(value)
        if self._num_header_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"headers may have at most {MAX_HEAD_BYTES} bytes, got {self._num_header_bytes} or more")
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, f"a request may have at most {MAX_HEADERS} headers, got {len(self.headers)} or more")

    def on_headers_complete(self) -> None:
        self._has_head()
        is_old = self.parser.get_http_version() == "1.0"
        if is_old:
            self.expect_100_continue = False  # RFC 9110 (10.1.1): there was no such answer yet
        super().on_headers_complete()
        if is_old and not any(name == b"transfer-encoding" for name, _ in self.headers):
            self.cycle.keep_alive = self.parser.should_keep_alive()
        if not self.pipeline:
            self._running = self.cycle
        if len(self.pipeline) > MAX_IN_LINE:
            message = f"at most {MAX_IN_LINE} requests may wait in line on a connection"
            self._refuse(429, message, {"retry-after": "1"})

    def on_body(self, body: bytes) -> None:
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_bytes = self._num_body_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what uvicorn's parser or a bound does not let through, and close."""
        self._close_with(self._refusal or HTTPException(400, "the request is not valid HTTP"))

    def _refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> NoReturn:
        """End parsing, from within one of the parser's callbacks."""
        self._refusal = HTTPException(status, message, headers)
        raise self._refusal

    # --- what goes out --------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._ignore_reader()
        super().resume_writing()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = self._running
        assert cycle is not None, "uvicorn starts the first in line"
        await self._app(scope, receive, FramedAnswer(cycle, send, self._is_early).send)

    def _is_early(self, cycle: RequestResponseCycle) -> bool:
        """Return whether an answer comes before a long body has come to its end: then it is the connection's last."""
        self._is_last_answer = cycle.more_body and not self._is_rest_short()
        return self._is_last_answer

    def _is_rest_short(self) -> bool:
        """Return whether little of the body is to come. A client that waits to be told to send it may never do so."""
        announced = next((int(value) for name, value in self.headers if name == b"content-length"), None)
        if announced is None or self.expect_100_continue:
            return False
        return announced - self._num_body_bytes <= MAX_UNREAD_BYTES

    def on_response_complete(self) -> None:
        if self._is_last_answer and not self.transport.is_closing():
            self._linger()
            return
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        self._watch_reader()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def _close_with(self, error: HTTPException) -> None:
        """Say why, unless that would land in the middle of an answer."""
        if self._running is None or self._running.response_complete or not self._running.response_started:
            self.transport.write(_encode(error))
        self._leave_running()
        self._linger()

    def _leave_running(self) -> None:
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    # --- what comes in after the last answer ------------------------------------------------------------------

    def _linger(self) -> None:
        """Say nothing more and close later: while the client sends, closing would cut off what it has to read."""
        self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)
        self._has_head()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._watch_reader()

    def _throw_away(self, data: bytes) -> None:
        self._num_lingering_bytes += len(data)
        if self._num_lingering_bytes > MAX_LINGER_BYTES:
            self.transport.close()

    # --- time-outs ------------------------------------------------------------------------------------------

    def _is_answering(self) -> bool:
        """Return whether a request has come whose answer is not complete: what it may take is the app's business."""
        return self._running is not None and not self._running.response_complete

    def _await_head(self) -> None:
        """Time the head, from the first byte of a request or from the start of the connection."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_slow_head)

    def _has_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        if self._num_bytes and not self.transport.is_closing():
            self._close_with(HTTPException(408, f"no complete request came within {HEAD_TIMEOUT_S:g} s"))
        self.transport.close()

    def _watch_reader(self) -> None:
        """See to it that the client reads something of what is to be sent, from now on."""
        self._ignore_reader()
        if size := self.transport.get_write_buffer_size():
            self._write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self._check_reader, size)

    def _ignore_reader(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _check_reader(self, former_size: int) -> None:
        if self.transport.get_write_buffer_size() < former_size:
            self._watch_reader()
            return
        logger.warning("a connection is closed: the client read nothing for %g s", WRITE_TIMEOUT_S)
        self.transport.abort()


def _encode(error: HTTPException) -> bytes:
    """Return the error as a response of its own, after which the connection is closed."""
    response = to_response(error)
    headers = {**response.headers, "connection": "close"}
    lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
    return b"".join([STATUS_LINE[response.status], *lines, b"\r\n", response.body])


def _fit_open_files(max_connections: int) -> int:
    """Return how many of them the system allows; where it takes a higher limit on open files, that is set."""
    if sys.platform == "win32":
        return max_connections
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fitting = max_connections if soft == resource.RLIM_INFINITY else max(min(max_connections, soft - _OTHER_FILES), 1)
    if fitting < max_connections:
        message = "at most %d connections can be open at once, not %d: the process may open %d files (ulimit -n)"
        logger.warning(message, fitting, max_connections, soft)
    return fitting
