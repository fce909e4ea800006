"""From listening to exit: running the app, draining on SIGTERM, and giving up when the engine does.

The first SIGTERM (or Ctrl-C) turns /ready red, refuses new work and lets requests that have come finish within
`drain_timeout_s`, those that are still being read too; from then on every answer is the last on its connection. When
that is over, or on a second signal, what still runs gets an error event. Either way the exit code is 0. The port stays
open while draining, so that clients read "503 draining" and not "connection refused". SIGHUP has the keys read again.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from orcinus.config.settings import Settings
from orcinus.engine.errors import OrcinusError
from orcinus.engine.messages import EngineInfo
from orcinus.server.context import ServingEngine
from orcinus.server.http.auth import KeyRing
from orcinus.server.http.connection import SharedByConnections, bounded_protocol
from orcinus.server.http.hosts import HostPolicy
from orcinus.server.http.refusals import Refusals
from orcinus.server.intake import Intake
from orcinus.server.process.listening import BACKLOG, listen
from orcinus.server.process.load_log import log_load
from orcinus.server.process.loop_lag import watch_lag
from orcinus.server.process.open_files import fit_open_files
from orcinus.server.process.orphans import reap_orphans

logger = logging.getLogger(__name__)

OnReady = Callable[[EngineInfo, int], None]

_SWITCH_S = 0.001  # a thread at work hands the interpreter to the event loop after so long
_CLOSE_TIMEOUT_S = 5  # for connections that do not close by themselves


def run_server(app: FastAPI, engine: ServingEngine, settings: Settings, on_ready: OnReady | None = None) -> int:
    """Serve until told to stop, and return the exit code. Call it in the main thread, after `engine.start`.

    `on_ready` is called with what the engine resolved and the port, once requests can be answered.
    Raises `ListenError`, `ModelLoadError`, and `EngineUnavailableError` when the engine ends while it is needed.
    """
    sys.setswitchinterval(_SWITCH_S)
    with contextlib.ExitStack() as opened:
        listeners = [opened.enter_context(listener) for listener in listen(settings.host, settings.port)]
        server = DrainingServer(app, engine, settings, on_ready)
        runner = opened.enter_context(asyncio.Runner(loop_factory=server.config.get_loop_factory()))
        runner.run(server.serve(sockets=listeners))
    if server.failure is not None:
        raise server.failure
    return 0


class DrainingServer(uvicorn.Server):
    """uvicorn, with the first signal starting a drain and the second ending it. `failure` is why it stopped itself."""

    def __init__(
        self, app: FastAPI, engine: ServingEngine, settings: Settings, on_ready: OnReady | None = None
    ) -> None:
        self.failure: OrcinusError | None = None
        self._num_signals = 0
        config = uvicorn.Config(
            app,
            http=bounded_protocol(self._shared(app, settings)),
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=2 * _CLOSE_TIMEOUT_S,
        )
        super().__init__(config)
        self._app = app
        self._engine = engine
        self._intake: Intake = app.state.context.intake
        self._keys: KeyRing = app.state.keys
        self._drain_timeout_s = settings.drain_timeout_s
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _shared(self, app: FastAPI, settings: Settings) -> SharedByConnections:
        """Return what the connections know of the server."""
        return SharedByConnections(
            max_connections=fit_open_files(settings.max_connections),
            keep_alive_s=settings.connection_keep_alive_s,
            hosts=HostPolicy(settings.host, settings.allowed_host),
            is_ending=lambda: self._num_signals > 0 or self.should_exit,
            refusals=Refusals(app.state.metrics.on_connection_refused, app.state.throttled_log, app.state.origins),
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._tasks.append(asyncio.create_task(self._watch_engine(), name="watch engine"))
        self._tasks.append(asyncio.create_task(watch_lag(self._app.state.metrics.on_loop_lag), name="watch lag"))
        self._tasks.append(asyncio.create_task(log_load(self._app.state.metrics.load), name="log load"))
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

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; SIGHUP, which would end the process, has the keys read again."""
        with super().capture_signals():
            former = signal.signal(signal.SIGHUP, self.handle_hangup) if hasattr(signal, "SIGHUP") else None
            try:
                yield
            finally:
                if hasattr(signal, "SIGHUP"):
                    signal.signal(signal.SIGHUP, former)

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Have the keys read again. The handler may interrupt anything, so the work is left to the event loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._reload_keys)

    def _reload_keys(self) -> None:
        self._tasks.append(asyncio.create_task(self._keys.reload(is_forced=True), name="read keys"))

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
