"""The log gets a line for each interval with work in it, on a clock that the test moves."""

import asyncio
import logging
from dataclasses import replace

import pytest

from orcinus.server.process.load_log import INTERVAL_S, log_load
from tests.unit.server.exposition.test_load import IDLE


async def test_busy_intervals_have_a_line_and_idle_ones_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    now, slept = 100.0, 0
    looks = iter(
        [
            IDLE,
            IDLE,
            replace(IDLE, num_generated_tokens=800),
            replace(IDLE, num_generated_tokens=800),
            replace(IDLE, num_generated_tokens=1_200),
        ]
    )

    async def sleep(seconds: float) -> None:
        nonlocal now, slept
        assert seconds == INTERVAL_S == 10.0
        now += 2 * seconds  # the loop comes round late
        slept += 1
        if slept == 5:
            raise asyncio.CancelledError

    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    caplog.set_level(logging.INFO, logger="orcinus.server.process.load_log")
    with pytest.raises(asyncio.CancelledError):
        await log_load(lambda: next(looks))
    assert [line.partition(" and ")[2].partition(" generated")[0] for line in caplog.messages] == ["5", "20"]
