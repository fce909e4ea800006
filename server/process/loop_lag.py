"""How late the event loop is: while it works on one thing, everything else that it serves waits."""

import asyncio
from collections.abc import Callable

INTERVAL_S = 0.1


async def watch_lag(observe: Callable[[float], None]) -> None:
    """Observe, ten times a second, how much later than asked the loop comes round. Runs until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        observe(max(loop.time() - due, 0.0))
