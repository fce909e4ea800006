"""Fixtures of the tests of the HTTP layer."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, serving


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Serving]:
    """An app whose model says "Hello" to everything."""
    async with serving(tmp_path, FakeExecutor(says("Hello"))) as running:
        yield running
