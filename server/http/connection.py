"""The bounds of a connection, which uvicorn leaves open: how large the head of a request may be and how long it may
take, which host it may name, how much may come around a body and after an answer, how many requests may stand in line,
how long a client may read nothing, how long it may ask nothing, and how many connections there are. What goes past a
bound is answered in its turn: what was asked before it comes first.

A thin layer over uvicorn's protocol, whose parser refuses by itself what is no HTTP. Knows bytes and time-outs; nothing
of routes, keys or what is in a body.
"""

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import httptools
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from orcinus.server.http.framing import FramedAnswer
from orcinus.server.http.half_closed import HalfClosedClient
from orcinus.server.http.hosts import HostPolicy
from orcinus.server.http.metrics_port import mark_metrics_port
from orcinus.server.http.parser import RequestParser
from orcinus.server.http.refusals import Refusals
from orcinus.server.http.targets import SERVER_TARGET, asks_of_server, with_path

MAX_HEAD_BYTES = 64 * 1024
MAX_TARGET_BYTES = 8 * 1024
MAX_HEADERS = 100
MAX_IN_LINE = 16  # requests that a client sends without waiting for the answers to those before
HEAD_TIMEOUT_S = 10.0
# How long a connection may ask nothing where more than half of those that may be open are: one that is new, or not.
FRESH_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 75.0
WRITE_TIMEOUT_S = 60.0
LINGER_S = 2.0  # for a client that still sends to read that it need not
MAX_LINGER_BYTES = 64 * 2**20
MAX_UNREAD_BYTES = 64 * 1024  # of a body: so much is read on after an answer, to keep the connection
MAX_TURNED_AWAY = 64  # connections beyond the bound that are open until they have read so; others are closed at once


@dataclass(slots=True)
class SharedByConnections:
    """Holds what all connections of a server share. `is_ending` tells whether each answer is its connection's last."""

    max_connections: int
    keep_alive_s: float
    hosts: HostPolicy
    refusals: Refusals
    is_ending: Callable[[], bool]
    is_metrics_port: bool = False
    num_turned_away: int = 0

    def has_room_for(self, num_connections: int) -> bool:
        """Return whether so many may be open, those that are turned away besides."""
        return num_connections - self.num_turned_away <= self.max_connections

    def has_much_room_beside(self, num_connections: int) -> bool:
        """Return whether at least as many more may be open."""
        return self.has_room_for(2 * num_connections - self.num_turned_away)


def bounded_protocol(shared: SharedByConnections) -> Any:
    """Return what uvicorn makes a connection with (`uvicorn.Config(http=...)`)."""
    return functools.partial(BoundedProtocol, shared)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What goes past a bound is answered, where that is still possible, and closed."""

    def __init__(self, shared: SharedByConnections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.parser = RequestParser(self)  # type: ignore[assignment]  # it does all that uvicorn asks of one
        self._app = self.app
        self.app = self._answer
        self._shared = shared
        self.timeout_keep_alive = min(IDLE_TIMEOUT_S, shared.keep_alive_s)  # type: ignore[assignment]  # a float will do
        self._idle_since = 0.0
        self._is_turned_away = False
        self._refusal: HTTPException | None = None
        self._running: RequestResponseCycle | None = None
        self._num_bytes = 0  # of the message that is coming in
        self._num_body_bytes = 0
        self._num_header_bytes = 0
        self._has_headers = False
        self._is_after_chunk_header = False
        self._is_between_requests = False  # of which one has come whole, and none has begun since
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._num_lingering_bytes = 0
        self._is_last_answer = False
        self._last_refusal: HTTPException | None = None  # once what was asked before it is answered
        self._half_closed: HalfClosedClient | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.client = _plain_address(self.client)
        self._idle_since = self.loop.time()
        if not self._shared.has_room_for(len(self.connections)):
            self._turn_away()
        else:
            self._await_request(FRESH_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that runs. uvicorn tells the one that came last, which may still stand in line behind it."""
        self._has_head()
        self._ignore_reader()
        self._unset_keepalive_if_required()
        self._shared.num_turned_away -= self._is_turned_away
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        if self._half_closed is not None:
            self._half_closed.forget()
        super().connection_lost(exc)
        self._leave_running()

    # --- what comes in --------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_deaf():
            self._throw_away(data)
            return
        if not self._is_answering():
            self._await_head()
        self._num_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # the latter for CONNECT
            self.send_400_response("")
        if not self._is_deaf():
            self._on_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn takes each for one that leaves
        """Return whether to stay: where what was asked is not answered, its client may have closed its side alone."""
        if self._half_closed is not None:
            return True
        if self.transport.get_extra_info("ssl_object") is not None:  # TLS has no half of a connection
            return False
        self._drop_incomplete()
        if self._linger_timer is not None or not self._is_answering() or self._is_incomplete():
            return False
        self._has_head()
        self._half_closed = HalfClosedClient(self.transport, self.loop, lambda: self._running)
        return True

    def _on_received(self, data: bytes) -> None:
        """See what has come together, and whether anything is still awaited."""
        if self._is_between_requests and not self._is_answering():  # the rest of a body has come after its answer
            self._has_head()
            self._await_request(self.timeout_keep_alive)
        num_around = self._num_bytes - self._num_body_bytes
        if num_around > MAX_HEAD_BYTES + self._num_body_bytes:
            status = 413 if self._has_headers and not self._is_in_trailer(data) else 431
            message = f"a request may have at most {MAX_HEAD_BYTES} bytes besides its body, got {num_around} or more"
            self._refusal = HTTPException(status, message)
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_header_bytes = 0
        self._has_headers = self._is_after_chunk_header = self._is_between_requests = False

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_HEAD_BYTES:
            self._check_size()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_headers:  # else it is of a trailer, which says nothing that the app asks for
            super().on_header(name, value)
        self._num_header_bytes += len(name) + len(value)
        if len(self.headers) > 2 * MAX_HEADERS:
            self._check_size()
        if self._num_header_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"headers may have at most {MAX_HEAD_BYTES} bytes, got {self._num_header_bytes} or more")

    def on_headers_complete(self) -> None:
        self._has_head()
        self._has_headers = True
        self._check_size()
        self._check_host()
        is_old = self.parser.get_http_version() == "1.0"
        if is_old:
            self.expect_100_continue = False  # RFC 9110 (10.1.1): there was no such answer yet
        is_of_server = asks_of_server(self.parser.get_method(), self.url)
        self.url = b"/" if is_of_server else with_path(self.url)
        super().on_headers_complete()
        if is_of_server:
            self.scope["path"], self.scope["raw_path"] = SERVER_TARGET, SERVER_TARGET.encode()
        if is_old and not any(name == b"transfer-encoding" for name, _ in self.headers):
            self.cycle.keep_alive = self.parser.should_keep_alive()
        if not self.pipeline:
            self._running = self.cycle
        if len(self.pipeline) > MAX_IN_LINE:
            message = f"at most {MAX_IN_LINE} requests may wait in line on a connection"
            self._refuse(429, message, {"retry-after": "1"})

    def _check_size(self) -> None:
        """Refuse a head of more than its bounds, once it is known whose page it comes from."""
        if len(self.url) > MAX_TARGET_BYTES:
            self._refuse(414, f"the URL may have at most {MAX_TARGET_BYTES} bytes, got {len(self.url)} or more")
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, f"a request may have at most {MAX_HEADERS} headers, got {len(self.headers)} or more")

    def _check_host(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            return  # whose target is a host, and which is refused as no HTTP that is spoken here
        try:
            self._shared.hosts.check(self.headers, self.url, self.parser.get_http_version())
        except HTTPException as refusal:
            self._refusal = refusal
            raise

    def on_chunk_header(self) -> None:
        self._is_after_chunk_header = True

    def on_body(self, body: bytes) -> None:
        self._is_after_chunk_header = False
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_bytes = self._num_body_bytes = 0
        self._is_between_requests = True
        super().on_message_complete()

    def _is_in_trailer(self, data: bytes) -> bool:
        """Return whether what came last is behind the last chunk: no body follows a chunk's header, but other bytes."""
        return self._is_after_chunk_header and not data.endswith(b"\r\n")

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
        if self._shared.is_metrics_port:
            mark_metrics_port(scope)
        answer = FramedAnswer(cycle, send, is_early=self._is_early, is_ending=self._is_ending)
        await self._app(scope, receive, answer.send)

    def _is_ending(self) -> bool:
        """Return whether the answer that is due is the last here."""
        is_asked_no_more = self._half_closed is not None and not self.pipeline and self._last_refusal is None
        return is_asked_no_more or self._shared.is_ending()

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
        if self._last_refusal is not None and not self.pipeline:
            if not self.transport.is_closing():
                self._write_refusal(self._last_refusal)
                self._linger()
            return
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        self._idle_since = self.loop.time()
        super().on_response_complete()
        self._watch_reader()
        if self._is_ending() and not self._is_answering():
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that asks nothing, or wait on, if there is time left and room for others."""
        left_s = self._shared.keep_alive_s - (self.loop.time() - self._idle_since)
        if left_s > 0 and self._shared.has_much_room_beside(len(self.connections)):
            self._await_request(min(left_s, FRESH_TIMEOUT_S))
            return
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def _close_with(self, error: HTTPException) -> None:
        """Say why, after the answers to what was asked before, unless that would land in the middle of one."""
        self._has_head()
        self._drop_incomplete()
        if self._is_answering() and not self._is_incomplete():
            self._last_refusal = error
            self.flow.resume_reading()
            return
        if self._running is None or self._running.response_complete or not self._running.response_started:
            self._write_refusal(error)
        else:
            self._shared.refusals.note(error)
        self._leave_running()
        self._linger()

    def _write_refusal(self, error: HTTPException) -> None:
        known = (self.url, self.headers) if self.headers is not None else ()
        response = self._shared.refusals.encode(error, self.server_state.default_headers, *known)
        if self.headers is not None and self.parser.get_method() == b"HEAD":
            response = response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        self.transport.write(response)

    def _turn_away(self) -> None:
        """Say that there is no room for this connection, and see to it that this can be read."""
        self._is_turned_away = True
        self._shared.num_turned_away += 1
        message = f"at most {self._shared.max_connections} connections may be open at once: try again later"
        self._write_refusal(HTTPException(503, message, {"retry-after": "1"}))
        if self._shared.num_turned_away > MAX_TURNED_AWAY:
            self.transport.close()
        else:
            self._linger()

    def _leave_running(self) -> None:
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    # --- what comes in after the last answer ------------------------------------------------------------------

    def _linger(self) -> None:
        """Say nothing more and close later: while the client sends, closing would cut off what it has to read."""
        if self._half_closed is not None:
            self.transport.close()
            return
        self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)
        self._has_head()
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # TLS cannot be closed on one side
            self.transport.write_eof()
        self._watch_reader()

    def _is_deaf(self) -> bool:
        """Return whether what comes in is thrown away: the last answer is on its way, or known."""
        return self._linger_timer is not None or self._last_refusal is not None

    def _throw_away(self, data: bytes) -> None:
        self._num_lingering_bytes += len(data)
        if self._num_lingering_bytes > MAX_LINGER_BYTES:
            self.transport.close()

    # --- time-outs ------------------------------------------------------------------------------------------

    def _is_answering(self) -> bool:
        """Return whether a request has come whose answer is not complete: what it may take is the app's business."""
        return self._running is not None and not self._running.response_complete

    def _is_incomplete(self) -> bool:
        """Return whether the request that is being answered has not come whole."""
        return self._running is not None and self._running.more_body

    def _drop_incomplete(self) -> None:
        """Take a request out of the line of which nothing more comes."""
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()

    def _await_request(self, timeout_s: float) -> None:
        """Look again after a while, unless something comes before."""
        self._unset_keepalive_if_required()
        timeout_s = min(timeout_s, self._shared.keep_alive_s)
        self.timeout_keep_alive_task = self.loop.call_later(timeout_s, self.timeout_keep_alive_handler)

    def _await_head(self) -> None:
        """Time the head, from the first byte of a request."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_slow_head)

    def _has_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        if not self.transport.is_closing():
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
        self._shared.refusals.note_unread(WRITE_TIMEOUT_S)
        self.transport.abort()


def _plain_address(client: tuple[str, int] | None) -> tuple[str, int] | None:
    """Return an address of IPv4 as one, which a socket for both families does not write so."""
    if client is None or not client[0].startswith("::ffff:"):
        return client
    return client[0].removeprefix("::ffff:"), client[1]
