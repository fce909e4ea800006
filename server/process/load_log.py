"""A line in the log for every ten seconds in which there was something to do."""

import asyncio
import logging
from collections.abc import Callable

from orcinus.server.exposition.load import Load, describe_load

logger = logging.getLogger(__name__)

INTERVAL_S = 10.0


async def log_load(look: Callable[[], Load], interval_s: float = INTERVAL_S) -> None:
    """Log what happened in each interval, and nothing where nothing did. Runs until cancelled."""
    loop = asyncio.get_running_loop()
    before, looked_at = look(), loop.time()
    while True:
        await asyncio.sleep(interval_s)
        now, after = loop.time(), look()
        if (line := describe_load(before, after, now - looked_at)) is not None:
            logger.info("%s", line)
        before, looked_at = after, now
