"""From listening to exit: running the app, draining on SIGTERM, and giving up when the engine does.

The first SIGTERM (or Ctrl-C) turns /ready red, refuses new work and lets requests that have come finish within
`drain_timeout_s`, those that are still being read too; from then on every answer is the last on its connection. When
that is over, or on a second signal, what still runs gets an error event. Either way the exit code is 0. The port stays
open while draining, so that clients read "503 draining" and not "connection refused". SIGHUP has the keys and the
certificate read again. The metrics' port, where there is one, has connections and bounds of its own.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from orcinus.config.settings import Settings
from orcinus.engine.errors import OrcinusError
from orcinus.engine.messages import EngineInfo
from orcinus.server.context import ServingEngine
from orcinus.server.http.auth import KeyRing
from orcinus.server.http.connection import HEAD_TIMEOUT_S, LINGER_S, SharedByConnections, bounded_protocol
from orcinus.server.http.hosts import HostPolicy
from orcinus.server.http.refusals import Refusals
from orcinus.server.intake import Intake
from orcinus.server.process.listening import BACKLOG, listen, listen_on_file, remove_file_of
from orcinus.server.process.load_log import log_load
from orcinus.server.process.loop_lag import watch_lag
from orcinus.server.process.metrics_listener import MetricsListener
from orcinus.server.process.open_files import fit_open_files
from orcinus.server.process.orphans import reap_orphans
from orcinus.server.process.tls import Certificate

logger = logging.getLogger(__name__)

OnReady = Callable[[EngineInfo, int], None]

_SWITCH_S = 0.001  # a thread at work hands the interpreter to the event loop after so long
_CLOSE_TIMEOUT_S = 5  # for connections that do not close by themselves


def run_server(app: FastAPI, engine: ServingEngine, settings: Settings, on_ready: OnReady | None = None) -> int:
    """Serve until told to stop, and return the exit code. Call it in the main thread, after `engine.start`.

    `on_ready` is called with what the engine resolved and the port (0 on a Unix socket), once requests can be answered.
    Raises `ListenError`, `ModelLoadError`, and `EngineUnavailableError` when the engine ends while it is needed.
    """
    sys.setswitchinterval(_SWITCH_S)
    with contextlib.ExitStack() as opened:
        listeners = [opened.enter_context(listener) for listener in _main_listeners(settings, opened)]
        own = [] if settings.metrics_port is None else listen(settings.host, settings.metrics_port, "--metrics-port")
        metrics_listeners = [opened.enter_context(listener) for listener in own]
        server = DrainingServer(app, engine, settings, on_ready, metrics_listeners)
        runner = opened.enter_context(asyncio.Runner(loop_factory=server.config.get_loop_factory()))
        runner.run(server.serve(sockets=listeners))
    if server.failure is not None:
        raise server.failure
    return 0


def _main_listeners(settings: Settings, opened: contextlib.ExitStack) -> list[socket.socket]:
    if settings.uds is None:
        return listen(settings.host, settings.port)
    listener = listen_on_file(settings.uds)
    opened.callback(remove_file_of, settings.uds)
    return [listener]


class DrainingServer(uvicorn.Server):
    """uvicorn, with the first signal starting a drain and the second ending it. `failure` is why it stopped itself."""

    def __init__(
        self,
        app: FastAPI,
        engine: ServingEngine,
        settings: Settings,
        on_ready: OnReady | None = None,
        metrics_listeners: Sequence[socket.socket] = (),
    ) -> None:
        self.failure: OrcinusError | None = None
        self._num_signals = 0
        self._certificate = None if settings.ssl_certfile is None else Certificate(settings)
        shared = self._shared(app, settings)
        self._protocol = bounded_protocol(shared)
        config = uvicorn.Config(
            app,
            http=self._protocol,
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.forwarded_allow_ips),
            forwarded_allow_ips=[*settings.forwarded_allow_ips],
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
        apart = dataclasses.replace(shared, hosts=HostPolicy(settings.host, settings.allowed_host))
        self._metrics_listener = MetricsListener(config, apart, metrics_listeners)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _shared(self, app: FastAPI, settings: Settings) -> SharedByConnections:
        """Return what the connections know of the server."""
        return SharedByConnections(
            max_connections=fit_open_files(settings.max_connections),
            keep_alive_s=settings.connection_keep_alive_s,
            hosts=HostPolicy(None if settings.uds else settings.host, settings.allowed_host),
            is_ending=lambda: self._num_signals > 0 or self.should_exit,
            refusals=Refusals(
                app.state.metrics.on_connection_refused,
                app.state.throttled_log,
                app.state.origins,
                settings.root_path,
            ),
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._loop = asyncio.get_running_loop()
        for listener in sockets or []:
            self.servers.append(await self._serve_on(self._loop, listener))
        self.servers += await self._metrics_listener.start(self.server_state)
        if self._certificate is not None:
            self._tasks.append(asyncio.create_task(self._certificate.watch(), name="watch certificate"))
        self._tasks.append(asyncio.create_task(self._watch_engine(), name="watch engine"))
        self._tasks.append(asyncio.create_task(watch_lag(self._app.state.metrics.on_loop_lag), name="watch lag"))
        self._tasks.append(asyncio.create_task(log_load(self._app.state.metrics.load), name="log load"))
        if os.getpid() == 1:
            self._tasks.append(asyncio.create_task(reap_orphans(), name="reap orphans"))
        if self._num_signals:
            self._on_signal()

    async def _serve_on(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> asyncio.base_events.Server:
        """Accept connections, which uvicorn would let take a minute for the handshake, and half of one for the end."""
        make: Callable[[], asyncio.Protocol] = functools.partial(
            self._protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=loop,
        )
        tls: dict[str, Any] = {}
        if self._certificate is not None:
            context = self._certificate.context
            tls = {"ssl": context, "ssl_handshake_timeout": HEAD_TIMEOUT_S, "ssl_shutdown_timeout": LINGER_S}
        if listener.family == socket.AF_UNIX:
            return await loop.create_unix_server(make, sock=listener, backlog=BACKLOG, **tls)
        return await loop.create_server(make, sock=listener, backlog=BACKLOG, **tls)

    async def on_tick(self, counter: int) -> bool:
        is_over = await super().on_tick(counter)
        self._metrics_listener.state.default_headers = self.server_state.default_headers
        return is_over

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._metrics_listener.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        patience = asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT_S, self._abort_connections)
        await super().shutdown(sockets)
        patience.cancel()

    def _abort_connections(self) -> None:
        """Cut off the clients that do not read what is left for them; their requests end as if they had gone."""
        if not self.server_state.connections:  # it is something else that takes so long, such as the last spans
            return
        logger.warning("%d connections were still open and were cut off", len(self.server_state.connections))
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; SIGHUP, which would end the process, has files read again."""
        with super().capture_signals():
            former = signal.signal(signal.SIGHUP, self.handle_hangup) if hasattr(signal, "SIGHUP") else None
            try:
                yield
            finally:
                if hasattr(signal, "SIGHUP"):
                    signal.signal(signal.SIGHUP, former)

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Have files read again. The handler may interrupt anything, so the work is left to the event loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._reload_files)

    def _reload_files(self) -> None:
        self._tasks.append(asyncio.create_task(self._keys.reload(is_forced=True), name="read keys"))
        if self._certificate is not None:
            self._certificate.reload(is_forced=True)

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
        address = self.servers[0].sockets[0].getsockname()
        return 0 if isinstance(address, str) else int(address[1])
