"""Calls in every format, streamed and joined by the official SDKs, of servers whose models write a given text."""

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from orcinus.server.reading.tools.formats import FORMATS
from tests.clients.environment import CLIENTS_PYTHON, run_module
from tests.unit.engine.fakes import CHAT_TEMPLATE, FakeExecutor, says
from tests.unit.server.reading.tools.writing import EVERY, as_json
from tests.unit.server.serving import listening, serving

pytestmark = pytest.mark.slow  # in an environment of its own

CALLS = [("get_weather", {"city": 'Zürich "W"\nNord', "days": 3}), ("get_time", {})]
TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
ROOM = {"max_model_len": 2048, "num_kv_blocks": 512}


async def outcomes(names: list[str], directory: Path) -> dict[str, str]:
    """Return what went wrong with each format, from one process of the clients."""
    async with contextlib.AsyncExitStack() as stack:
        formats = {}
        for i, name in enumerate(names):
            parser = name.partition(",")[0]
            calls = CALLS if FORMATS[parser].is_parallel else CALLS[:1]
            text = EVERY[name][1]([(called, as_json(arguments)) for called, arguments in calls])
            served = await stack.enter_async_context(
                serving(
                    directory / str(i), FakeExecutor(says(text)), info=ROOM, template=TEMPLATE, tool_call_parser=parser
                )
            )
            _, port = await stack.enter_async_context(listening(served))
            formats[name] = {"url": f"http://127.0.0.1:{port}", "calls": calls}
        file = directory / "formats.json"
        file.write_text(json.dumps(formats))
        script = "tests.clients.scripts.format_streams"
        found: dict[str, str] = await asyncio.to_thread(run_module, CLIENTS_PYTHON, directory, script, str(file))
        return found


async def test_streams_of_every_format_join_to_its_calls(tmp_path: Path) -> None:
    found = await outcomes(list(EVERY), tmp_path)
    assert set(found) == set(EVERY)
    assert not {name: problem for name, problem in found.items() if problem}
