"""From listening to exit: running the app, draining on SIGTERM, and giving up when the engine does.

The first SIGTERM (or Ctrl-C) turns /ready red, refuses new work and lets requests that have come finish within
`drain_timeout_s`, those that are still being read too; when that is over, or on a second signal, what still runs gets
an error event. Either way the exit code is 0. The port stays open while draining, so that clients read "503 draining"
and not "connection refused".
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from orcinus.config.settings import Settings
from orcinus.engine.errors import OrcinusError
from orcinus.engine.messages import EngineInfo
from orcinus.server.context import ServingEngine
from orcinus.server.http.connection import bounded_protocol
from orcinus.server.intake import Intake
from orcinus.server.process.orphans import reap_orphans

logger = logging.getLogger(__name__)

OnReady = Callable[[EngineInfo, int], None]

_SWITCH_S = 0.001  # a thread at work hands the interpreter to the event loop after so long
_BACKLOG = 2048
_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they and not we close them
_CLOSE_TIMEOUT_S = 5  # for connections that do not close by themselves


class ListenError(OrcinusError):
    """The address cannot be listened on."""


def run_server(app: FastAPI, engine: ServingEngine, settings: Settings, on_ready: OnReady | None = None) -> int:
    """Serve until told to stop, and return the exit code. Call it in the main thread, after `engine.start`.

    `on_ready` is called with what the engine resolved and the port, once requests can be answered.
    Raises `ListenError`, `ModelLoadError`, and `EngineUnavailableError` when the engine ends while it is needed.
    """
    sys.setswitchinterval(_SWITCH_S)
    listener = listen(settings.host, settings.port)
    server = DrainingServer(app, engine, settings, on_ready)
    with listener, asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))
    if server.failure is not None:
        raise server.failure
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket on the first address that `host` stands for. Raises `ListenError`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        raise ListenError(f"cannot listen on {host} port {port}: {reason}") from error


class DrainingServer(uvicorn.Server):
    """uvicorn, with the first signal starting a drain and the second ending it. `failure` is why it stopped itself."""

    def __init__(
        self, app: FastAPI, engine: ServingEngine, settings: Settings, on_ready: OnReady | None = None
    ) -> None:
        config = uvicorn.Config(
            app,
            http=bounded_protocol(settings.max_connections),
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=2 * _CLOSE_TIMEOUT_S,
        )
        super().__init__(config)
        self.failure: OrcinusError | None = None
        self._app = app
        self._engine = engine
        self._intake: Intake = app.state.context.intake
        self._drain_timeout_s = settings.drain_timeout_s
        self._on_ready = on_ready
        self._num_signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._tasks.append(asyncio.create_task(self._watch_engine(), name="watch engine"))
        if os.getpid() == 1:
            self._tasks.append(asyncio.create_task(reap_orphans(), name="reap orphans"))
        if self._num_signals:
            self._on_signal()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        patience = asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT_S, self._abort_connections)
        await super().shutdown(sockets)
        patience.cancel()

    def _abort_connections(self) -> None:
        """Cut off the clients that do not read what is left for them; their requests end as if they had gone."""
        logger.warning("%d connections were still open and were cut off", len(self.server_state.connections))
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Count a signal. The handler may interrupt anything, so the work is left to the event loop."""
        self._num_signals += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_signal)

    def _on_signal(self) -> None:
        finish = self._drain if self._num_signals == 1 else self._stop
        self._tasks.append(asyncio.create_task(finish()))

    async def _drain(self) -> None:
        logger.info("draining: no new requests, at most %g s for those that have come", self._drain_timeout_s)
        self._intake.close()
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                await self._intake.wait_empty()
                self._engine.start_draining()
                await self._engine.drained(None)
        except TimeoutError:
            logger.warning("requests were not done after %g s and were ended", self._drain_timeout_s)
        await self._stop()

    async def _stop(self) -> None:
        """End whatever still runs with an error, which its stream writes while uvicorn waits for connections."""
        self._num_signals = max(self._num_signals, 1)
        self._intake.close()
        self._intake.give_up()
        await self._engine.aclose()
        self.should_exit = True

    async def _watch_engine(self) -> None:
        """Stop when no engine will come any more, which only what supervises this process can mend."""
        try:
            info = await self._engine.wait_ready()
            if self._on_ready is not None:
                self._on_ready(info, self._port())
            await asyncio.shield(self._app.state.reading)
            await self._engine.wait_ready()  # raises what it ended of
        except OrcinusError as error:
            if not self._num_signals:
                logger.debug("stopping: %s", error)  # the caller of run_server reports it
                self.failure = error
                self.should_exit = True

    def _port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port
