"""What goes out over ASGI: JSON, errors, and the two ways to answer a generation, whole or as a stream of events.

Both generation answers listen for the client's leaving while they work, and abort the request at once when it does.
One that stays and reads nothing is made to leave by `server.http.connection`. Knows ASGI and bytes; what is in the
bytes comes from `server.apis.generation`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orcinus.server.apis.generation import Generation, StreamableGeneration
from orcinus.server.apis.json_pieces import BLOCK_BYTES, STEP_BYTES, Pacer
from orcinus.server.errors import is_expected, to_response
from orcinus.server.http.half_closed import ASK_STATE
from orcinus.server.tracing.layer import trace_of

logger = logging.getLogger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

T = TypeVar("T")


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def error_response(error: Exception, scope: Scope) -> Response:
    """Return what answers the request of this scope with an error, from within a route or from a layer around it."""
    if (trace := trace_of(scope)) is not None:
        trace.on_error(error)
    answer = to_response(error, scope["path"], scope["state"]["request_id"], scope["headers"])
    return Response(answer.body, answer.status, answer.headers)


class JsonAnswer(Response):
    """An answer that is complete, in blocks of one JSON document, which are sent one by one."""

    def __init__(self, blocks: list[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        length = str(sum(map(len, blocks)))
        self.init_headers({**(headers or {}), "content-type": "application/json", "content-length": length})
        self._blocks = blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pacer = Pacer()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for block in self._blocks:
            await send({"type": "http.response.body", "body": block, "more_body": True})
            await pacer.spend(len(block))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class WholeAnswer(Response):
    """The complete answer as one JSON object."""

    def __init__(self, generation: Generation) -> None:
        super().__init__()
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        blocks = await run_until_disconnect(receive, self._generation.whole())
        if blocks is not None:
            await JsonAnswer(blocks, self._generation.headers())(scope, receive, send)


class EventStream(Response):
    """The answer as server-sent events. Until the first byte is out, an error is still a response of its own.

    Silence is broken by a comment every `keep_alive_s`, the first of which also sends the response's headers, and when
    the connection asks for one, to learn whether its client is there.
    """

    def __init__(self, generation: StreamableGeneration, keep_alive_s: float) -> None:
        super().__init__()
        self._generation = generation
        self._keep_alive_s = keep_alive_s
        self._lock = asyncio.Lock()  # one event at a time, whole
        self._pacer = Pacer()
        self._is_started = False
        self._last_write = time.monotonic()
        self._is_asked = asyncio.Event()  # for a comment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        scope["state"][ASK_STATE] = self._is_asked.set
        self._trace = trace_of(scope)
        try:
            await run_until_disconnect(receive, self._write_events(), self._keep_alive())
        finally:
            self._generation.stream.abort()

    async def _write_events(self) -> None:
        generation = self._generation
        try:
            async for output in generation.stream:
                await self._write(generation.encode(output))
            last = generation.encode_end()
        except Exception as error:
            if not self._is_started:
                raise
            if not is_expected(error):
                logger.error("%s: failed in its stream", generation.request.request_id, exc_info=error)
            if self._trace is not None:
                self._trace.on_error(error)
            last = generation.encode_error(error)
        await self._write(last, is_last=True)

    async def _keep_alive(self) -> None:
        """Send a comment whenever nothing else was sent for long. Runs beside the events until they end."""
        while True:
            silence_s = time.monotonic() - self._last_write
            if silence_s < self._keep_alive_s and not self._is_asked.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._is_asked.wait(), self._keep_alive_s - silence_s)
            elif self._lock.locked():
                await asyncio.sleep(min(self._keep_alive_s, 1.0))
            else:
                self._is_asked.clear()
                await self._write((KEEP_ALIVE,))

    async def _write(self, events: Iterable[bytes], *, is_last: bool = False) -> None:
        """Send events, which may be long: in blocks, between which the event loop may go round."""
        async with self._lock:
            block = b""
            for piece in events:
                block = block + piece if block else piece
                if len(block) >= BLOCK_BYTES:
                    await self._send_block(block, more_body=True)
                    block = b""
                elif not piece:
                    await self._pacer.spend(STEP_BYTES)
            if block or is_last:
                await self._send_block(block, more_body=not is_last)

    async def _send_block(self, block: bytes, *, more_body: bool) -> None:
        if not self._is_started:
            self._is_started = True
            told = [(name.encode(), value.encode()) for name, value in self._generation.opening_headers().items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *told]})
        await self._send({"type": "http.response.body", "body": block, "more_body": more_body})
        self._last_write = time.monotonic()
        await self._pacer.spend(len(block))


async def run_until_disconnect(
    receive: Receive, work: Coroutine[Any, Any, T], companion: Coroutine[Any, Any, None] | None = None
) -> T | None:
    """Return the result of `work`, or None if the client left before it was done. `companion` runs beside it.

    Whatever is still running is cancelled on the way out. An exception of `work` or of `companion` is raised.
    """
    task = asyncio.create_task(work)
    others = [asyncio.create_task(_wait_for_disconnect(receive))]
    if companion is not None:
        others.append(asyncio.create_task(companion))
    try:
        await asyncio.wait([task, *others], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        for other in others:
            if other.done():
                other.result()
        return None
    finally:
        await _cancel([task, *others])


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
