"""Fixtures of the tests of the HTTP layer."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, serving


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Serving]:
    """An app whose model says "Hello" to everything."""
    async with serving(tmp_path, FakeExecutor(says("Hello"))) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    """The same for all tests of a file that leave it as they found it, which are marked `in_one_loop`."""
    async with serving(tmp_path_factory.mktemp("served"), FakeExecutor(says("Hello"))) as running:
        yield running
