"""Servers that tests of several folders share, how much the tests try, what is no garbage, and what a run left out."""

import gc
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.effort import compute_with_one_thread, register_profiles
from tests.server_process import LIGHT, ServerProcess, StartServer

NUM_SLOW = pytest.StashKey[int]()
NUM_MODULES = pytest.StashKey[int]()
_MANY_MODULES = 100

compute_with_one_thread()
register_profiles()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts servers with extra arguments, and ends them after the test."""
    servers: list[ServerProcess] = []

    def start(*args: str, **options: Any) -> ServerProcess:
        servers.append(ServerProcess(*args, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def start_light_server(start_server: StartServer) -> StartServer:
    """Starts servers whose engine has no model: where the promise is the server's, in a third of the time."""
    return partial(start_server, module=LIGHT)


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """One server with the default settings, for all tests that leave it as they found it."""
    running = ServerProcess()
    try:
        assert running.get("/ready").status_code == 200
        yield running
    finally:
        running.close()


# --- garbage --------------------------------------------------------------------------------------------


def keep_what_there_is(config: pytest.Config) -> None:
    """Leave the tests and modules that there are out of collections of garbage, each of which takes a second with them:
    loading a model is one.
    """
    config.stash[NUM_MODULES] = len(sys.modules)
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    is_last_of_file = nextitem is None or nextitem.path != item.path
    if is_last_of_file and len(sys.modules) > item.config.stash[NUM_MODULES] + _MANY_MODULES:
        keep_what_there_is(item.config)


def pytest_sessionfinish() -> None:
    gc.unfreeze()


# --- what was left out ----------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NUM_SLOW] = 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes as one test: the others fill the time of the other workers."""
    items.sort(key=lambda item: "sanitizers" not in item.path.parts)


def pytest_collection() -> None:
    gc.disable()  # collecting tests makes millions of objects that stay


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell the process that collects the results of several workers what each of them left out."""
    keep_what_there_is(session.config)
    gc.enable()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["num_slow"] = session.config.stash[NUM_SLOW]


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[NUM_SLOW] += sum("slow" in item.keywords for item in items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Of pytest-xdist: a worker has ended; all of them collect the same tests."""
    output = getattr(node, "workeroutput", {})
    node.config.stash[NUM_SLOW] = output.get("num_slow", 0)  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if num_slow := config.stash[NUM_SLOW]:
        terminalreporter.write_line(f"{num_slow} slow tests were left out; make test-all runs them, too")
