"""A client that sends no more while it is owed an answer: it may have closed its sending side alone, or have left.

TCP says the same of both until something is sent: then the system of a client that has left says so. Knows one
connection and the request that is answered on it, and nothing of what is asked.
"""

import asyncio
import socket
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

LOOK_EVERY_S = 0.1
PROBE_EVERY_S = 10.0
OLD_CLIENT_S = 2.0  # for an answer to one of HTTP/1.0, to which nothing can be sent before it
# Where the state of a request has what makes an answer that has begun send something that says nothing, if it can.
ASK_STATE = "ask_for_comment"
# RFC 9110 (15.2): what a client passes over before the answer that it waits for, though it has not asked for it.
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HalfClosedClient:
    """Ends the connection once the client is found to have left, or with HTTP/1.0 once it has waited for too long.

    `running` gives the request that is being answered.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        running: Callable[[], RequestResponseCycle | None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._running = running
        self._probed_at: float | None = None
        self._timer = loop.call_later(LOOK_EVERY_S, self._look)

    def forget(self) -> None:
        """Look no more: the connection is closed."""
        self._timer.cancel()

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        if self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
            return
        cycle, now = self._running(), self._loop.time()
        if cycle is not None and (self._probed_at is None or now - self._probed_at >= PROBE_EVERY_S):
            self._probed_at = now
            self._probe(cycle)
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    def _probe(self, cycle: RequestResponseCycle) -> None:
        if cycle.response_started:
            if ask := cycle.scope["state"].get(ASK_STATE):
                ask()
        elif cycle.scope["http_version"] == "1.0":
            self._loop.call_later(OLD_CLIENT_S, self._give_up, cycle)
        else:
            self._transport.write(PROBE)

    def _give_up(self, cycle: RequestResponseCycle) -> None:
        if not cycle.response_started:
            self._transport.close()
