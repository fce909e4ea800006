"""The event loop's lag is observed as long as it is, on a clock that the test moves."""

import asyncio

import pytest

from orcinus.server.process.loop_lag import INTERVAL_S, watch_lag


async def test_what_holds_the_loop_up_is_seen_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    now, holds = 100.0, iter([0.0, 2.5, 0.0])
    lags: list[float] = []
    seen = asyncio.Event()

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds + next(holds)

    def observe(lag_s: float) -> None:
        lags.append(lag_s)
        if len(lags) == 3:
            seen.set()
            raise asyncio.CancelledError

    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await watch_lag(observe)
    assert seen.is_set()
    assert lags == pytest.approx([0.0, 2.5, 0.0])
    assert now == pytest.approx(100.0 + 3 * INTERVAL_S + 2.5)
