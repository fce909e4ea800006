"""How often Anthropic's SDK asks again, by itself, where that would harm."""

import asyncio
from pathlib import Path

import pytest

from tests.clients.environment import CLIENTS_PYTHON, run_module
from tests.integration.test_retries import ERRORS, failing, num_asked
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import listening, serving

pytestmark = pytest.mark.slow  # in an environment of its own

SCRIPTS = "tests.clients.scripts"


@pytest.mark.parametrize("status", ERRORS)
async def test_anthropics_asks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello"))) as served, listening(served) as (_, port):
        failing(served, monkeypatch, ERRORS[status])
        arguments = (f"{SCRIPTS}.checks", f"{SCRIPTS}.anthropic_retries", f"http://127.0.0.1:{port}")
        outcomes = await asyncio.to_thread(run_module, CLIENTS_PYTHON, tmp_path, *arguments)
        assert outcomes == {"check_a_message_that_fails": "", "check_a_stream_that_fails": ""}
        assert await num_asked(served) == 2
