"""From the head of a request to its admission: one request's bounds while it is read and prepared.

It has a place in the intake, its deadline runs, its client's leaving ends it, and what it costs is its client's turn.
Knows how a body is read, and not what is prepared.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from orcinus.engine.errors import OrcinusError, RequestTimeoutError
from orcinus.engine.frontend.turns import on_behalf_of
from orcinus.engine.outputs import Outcome
from orcinus.server.context import ServingContext
from orcinus.server.http.body import BodyReader
from orcinus.server.http.rejections import count_rejection
from orcinus.server.intake import Passage
from orcinus.server.metrics import Metrics
from orcinus.server.requests.caller import Caller, read_caller

# Most requests are prepared sooner: listening costs a task.
_LISTEN_AFTER_S = 0.05


class Preparation:
    """`prepare` each request within its bounds."""

    def __init__(self, context: ServingContext, bodies: BodyReader, metrics: Metrics) -> None:
        self._context = context
        self._bodies = bodies
        self._metrics = metrics

    @asynccontextmanager
    async def prepare(self, request: Request, caller: Caller) -> AsyncIterator[dict[str, Any]]:
        """Read the body, for the block to make of it what the engine can take.

        Raises what `Intake.enter` and `BodyReader.read_json_object` raise, `RequestTimeoutError` at the deadline, and
        starlette's `ClientDisconnect`.
        """
        with on_behalf_of(caller.client):
            async with self._context.intake.enter(caller.client) as passage:
                with self._metrics.preparing():
                    _set_deadline(passage, caller, caller.timeout_s)
                    body = await self._bodies.read_json_object(request)
                    _set_deadline(passage, caller, caller.deadline_s(caller.timeout_in(body)))
                    async with _listening(request.receive, lambda: passage.end(ClientDisconnect())):
                        yield body

    @asynccontextmanager
    async def prepare_generation(self, request: Request) -> AsyncIterator[tuple[dict[str, Any], Caller]]:
        """Do as `prepare`, give who asks, too, and count what ends here before the engine has it."""
        body: dict[str, Any] = {}
        try:
            caller = read_caller(request.scope)
            async with self.prepare(request, caller) as body:
                yield body, caller
        except RequestTimeoutError:
            self._count_end("timeout", caller)
            raise
        except ClientDisconnect:
            self._count_end("abort", caller)
            raise
        except OrcinusError as error:
            count_rejection(self._metrics, error, body)
            raise

    def _count_end(self, outcome: Outcome, caller: Caller) -> None:
        asked_at = caller.asked_at or time.monotonic()
        self._metrics.on_choice_done(outcome, time.monotonic() - asked_at, 0, 0)


def _set_deadline(passage: Passage, caller: Caller, timeout_s: float | None) -> None:
    if timeout_s is not None and caller.asked_at is not None:
        error = RequestTimeoutError(f"the request did not finish within {timeout_s:g} s: it was still being prepared")
        passage.end_in(timeout_s - (time.monotonic() - caller.asked_at), error)


@asynccontextmanager
async def _listening(receive: Receive, on_left: Callable[[], None]) -> AsyncIterator[None]:
    """Call `on_left` if the client leaves while the block takes long. The body must have been read."""
    listeners: list[asyncio.Task[None]] = []

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        on_left()

    timer = asyncio.get_running_loop().call_later(
        _LISTEN_AFTER_S, lambda: listeners.append(asyncio.create_task(listen()))
    )
    try:
        yield
    finally:
        timer.cancel()
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
