"""The metrics' port: connections apart from the others, so that a server that is full can still be looked at.

It speaks no TLS, and is open as long as the process serves. What is served there is `server.http.metrics_port`'s part.
"""

import asyncio
import dataclasses
import functools
import logging
import socket
from collections.abc import Sequence

import uvicorn
from uvicorn.server import ServerState

from orcinus.server.http.connection import SharedByConnections, bounded_protocol
from orcinus.server.process.listening import BACKLOG

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 32


class MetricsListener:
    """`start` and `stop` it with the server. Without `listeners` it does nothing."""

    def __init__(self, config: uvicorn.Config, shared: SharedByConnections, listeners: Sequence[socket.socket]) -> None:
        """`config` is that of the main port, and `shared` what connections share but for their number."""
        self.state = ServerState()
        self._config = config
        self._shared = dataclasses.replace(shared, max_connections=MAX_CONNECTIONS, is_metrics_port=True)
        self._listeners = listeners

    async def start(self, main_state: ServerState) -> list[asyncio.base_events.Server]:
        """Begin to accept connections, whose tasks are among those that the server waits for at its end."""
        self.state.tasks = main_state.tasks
        loop = asyncio.get_running_loop()
        make = functools.partial(
            bounded_protocol(self._shared), config=self._config, server_state=self.state, app_state={}, _loop=loop
        )
        servers = [await loop.create_server(make, sock=each, backlog=BACKLOG) for each in self._listeners]
        if servers:
            port = servers[0].sockets[0].getsockname()[1]
            logger.info("metrics are on port %d", port)
        return servers

    def stop(self) -> None:
        """Close the connections, once what they are answering is sent."""
        for connection in list(self.state.connections):
            connection.shutdown()
