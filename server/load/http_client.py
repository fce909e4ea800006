"""Connections to one HTTP server, cheap enough not to be what is measured.

It owns sockets, keep-alive and the parsing of HTTP, and knows nothing of what is in the bodies. A general client
spends most of its time per piece of a body on layers that a load generator has no use for: at 64 streams of 200 events
a second, httpx gets no further than half of them. The parser is llhttp, through httptools, which uvicorn uses too.
Redirects, proxies and cookies are not followed, taken or kept.
"""

import asyncio
import functools
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

from orcinus.config.addresses import parse_socket_url
from orcinus.config.certificates import client_context, handshake_failure
from orcinus.config.settings import SettingsError
from orcinus.server.load.answers import RequestFailedError

EVENT_STREAM = "text/event-stream"
Sink = Callable[[float, bytes], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Response:
    """Holds what was not handed to a sink: the whole body of an error, or of an answer that is no stream."""

    status: int
    content_type: str
    body: bytes
    retry_after: str = ""


class HttpClient:
    """Sends requests to the server at `base_url`, each on a connection of its own, which the next one may reuse.

    Its requests raise `RequestFailedError`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        clock: Clock = time.monotonic,
        *,
        cacert: Path | None = None,
    ) -> None:
        """`base_url` may be `unix:/path`; `cacert` has the certificates to trust in place of the system's."""
        self._socket = _socket_path(base_url)
        url = urlsplit("http://localhost" if self._socket else base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise SettingsError(f"{base_url!r} is no URL of a server; give one like http://127.0.0.1:8000")
        self.clock = clock
        self._host, self._port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
        self._tls = _context(cacert) if url.scheme == "https" else None
        self._path = url.path.rstrip("/").removesuffix("/v1")
        self._head = _common_head(url.netloc.rpartition("@")[2], api_key)
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for connection in self._idle:
            connection.close()

    async def get(self, path: str) -> Response:
        return await self._send(f"GET {self._path}{path} HTTP/1.1\r\n{self._head}\r\n".encode(), None)

    async def post(self, path: str, body: bytes, sink: Sink | None = None) -> Response:
        """The response to a JSON body. A stream of events is handed to `sink`, piece by piece with its time."""
        head = (
            f"POST {self._path}{path} HTTP/1.1\r\n{self._head}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self._send(head.encode() + body, sink)

    async def _send(self, request: bytes, sink: Sink | None) -> Response:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._send_on_some_connection(request, sink)
        except TimeoutError:
            raise RequestFailedError(f"it took longer than {self._timeout_s:g} s") from None

    async def _send_on_some_connection(self, request: bytes, sink: Sink | None) -> Response:
        """An idle connection that the server closes before it answers was too old: another one is tried."""
        while (connection := self._take_idle()) is not None:
            try:
                return await self._exchange(connection, request, sink)
            except _NoAnswerError:
                continue
        try:
            return await self._exchange(await self._connect(), request, sink)
        except _NoAnswerError:
            raise RequestFailedError("the server closed the connection without an answer") from None

    async def _exchange(self, connection: "_Connection", request: bytes, sink: Sink | None) -> Response:
        try:
            response = await connection.exchange(request, sink)
        except BaseException:
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)
        return response

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        make = functools.partial(_Connection, self.clock)
        try:
            if self._socket is not None:
                _, connection = await loop.create_unix_connection(make, self._socket)
            else:
                _, connection = await loop.create_connection(make, self._host, self._port, ssl=self._tls)
        except OSError as error:
            place = self._socket or f"{self._host} port {self._port}"
            failure = handshake_failure(error, place)
            raise RequestFailedError(f"cannot connect to {place}", failure or error.strerror or str(error)) from None
        return connection


class _NoAnswerError(Exception):
    """The connection was closed before the first byte of an answer."""


class _Connection(asyncio.Protocol):
    """One connection, which carries one exchange after the other. The parser calls the methods named `on_...`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Response] | None = None
        self._sink: Sink | None = None
        self._now_s = 0.0
        self._begin()

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    async def exchange(self, request: bytes, sink: Sink | None) -> Response:
        """Send a request and wait for the end of its response. Raises `_NoAnswerError` and `RequestFailedError`."""
        if self._transport is None:
            raise _NoAnswerError
        self._begin()
        self._sink = sink
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answered
        finally:
            self._answered = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's only looks like one

    def data_received(self, data: bytes) -> None:
        self._now_s = self._clock()
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(RequestFailedError("the answer is not HTTP", str(error)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._has_begun:
            self._fail(_NoAnswerError())
        elif self._status and self._ends_with_connection and exc is None:
            self.on_message_complete()
        else:
            self._fail(RequestFailedError("the connection was closed before the end of the answer"))

    def on_header(self, name: bytes, value: bytes) -> None:
        header = name.lower()
        if header == b"content-type":
            self._content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif header in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False
        elif header == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._streams = self._sink is not None and self._status == 200 and self._content_type == EVENT_STREAM

    def on_body(self, body: bytes) -> None:
        if not self._streams or self._sink is None:
            self._body.append(body)
            return
        try:
            self._sink(self._now_s, body)
        except RequestFailedError as error:
            self._fail(error)

    def on_message_complete(self) -> None:
        if self._answered is not None and not self._answered.done():
            body = b"".join(self._body)
            self._answered.set_result(Response(self._status, self._content_type, body, self._retry_after))
        if not self._parser.should_keep_alive():
            self.close()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._has_begun = False
        self._status = 0
        self._content_type = ""
        self._retry_after = ""
        self._ends_with_connection = True
        self._streams = False
        self._body: list[bytes] = []

    def _fail(self, error: BaseException) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)
        self.close()


def _common_head(host: str, api_key: str | None) -> str:
    key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    return f"Host: {host}\r\nAccept: application/json, {EVENT_STREAM}\r\n{key}"


def _socket_path(base_url: str) -> str | None:
    try:
        return parse_socket_url(base_url.strip())
    except ValueError as error:
        raise SettingsError(f"--base-url {base_url!r}: {error}") from None


def _context(cacert: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context() if cacert is None else client_context(cacert)
