"""Servers that tests of several folders share."""

from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess, StartServer


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts servers with extra arguments, and ends them after the test."""
    servers: list[ServerProcess] = []

    def start(*args: str) -> ServerProcess:
        servers.append(ServerProcess(*args))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """One server with the default settings, for all tests that leave it as they found it."""
    running = ServerProcess()
    try:
        assert running.get("/ready").status_code == 200
        yield running
    finally:
        running.close()
