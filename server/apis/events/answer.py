"""GET /events: one event a line, several a second while something runs, one a second otherwise.

Owns the pace. What is in an event is `server.watching`'s part.
"""

import asyncio
import contextlib
import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orcinus.server.watching.watch import Watch, Watcher

MAX_EVENTS_PER_S = 10
_SILENCE_S = 1.0  # after which an event says that nothing has happened
_STREAM_S = 600.0  # after which the client has to come again, with a key that is still valid


def events(request: Request) -> Response:
    """Return the stream of events."""
    return WatchStream(request.app.state.watch)


class WatchStream(Response):
    """Tells one watcher, until it leaves, the server ends, or the stream is so old that its key may not be valid."""

    media_type = "text/event-stream"

    def __init__(self, watch: Watch) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["state"].get("is_head"):
            await self._start(send)
            await send({"type": "http.response.body", "body": b""})
            return
        with self._watch.open() as watcher:
            leaving = asyncio.create_task(_left(receive))
            leaving.add_done_callback(lambda _: watcher.news.set())
            try:
                await self._start(send)
                await self._tell(watcher, leaving, send)
            finally:
                leaving.cancel()

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _tell(self, watcher: Watcher, leaving: asyncio.Task[None], send: Send) -> None:
        ends_at = time.monotonic() + _STREAM_S
        while not leaving.done():
            event = watcher.event()
            is_last = event["status"] == "dead" or time.monotonic() > ends_at
            data = b"data: %b\n\n" % msgspec.json.encode(event)
            await send({"type": "http.response.body", "body": data, "more_body": not is_last})
            if is_last:
                return
            await asyncio.sleep(1 / MAX_EVENTS_PER_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SILENCE_S):
                    await watcher.news.wait()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
