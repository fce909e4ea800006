"""Counts what named keys use, and has it written every few seconds, in a thread, while requests go on.

Where it cannot be written (the disk is full, the file is broken), it is kept in memory and tried again, and no request
is any the wiser. A server that is killed loses what it counted in the last seconds.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from orcinus.config.api_keys import key_name
from orcinus.engine.outputs import RequestUsage
from orcinus.server.errors import UsageUnavailableError
from orcinus.server.usage.store import GROUPS, Counts, Groups, Usage, UsageKey, add_usage, read_usage

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 2.0
RETRY_AFTER_S = 30.0  # where it could not be written
_READ_WITHIN_S = 15.0
_CLOSE_WITHIN_S = 5.0
MAX_WAITING = 100_000  # rows that could not be written yet: a thousand keys for a hundred days


class UsageBook:
    """`add` each request that has ended; `keep` is a task that writes until `close`. One event loop."""

    def __init__(self, path: Path, model_name: str) -> None:
        """Count requests without an adapter as of `model_name`."""
        self._path = path
        self._model_name = model_name
        self._waiting: dict[UsageKey, Usage] = {}
        self._writing = asyncio.Lock()
        self._batch: asyncio.Task[None] | None = None
        self._is_closing = asyncio.Event()
        self._problem = ""
        self._has_dropped = False

    def add(self, usage: RequestUsage) -> None:
        """Count a request, if its key has a name."""
        if (name := key_name(usage.client)) is None:
            return
        day = datetime.now(UTC).date().isoformat()
        counts = Usage(
            1, usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_output_tokens, int(usage.is_failed)
        )
        self._add({UsageKey(day, name, usage.adapter or self._model_name): counts})

    async def keep(self) -> None:
        """Write what was counted, every few seconds, and once more at the end."""
        while not self._is_closing.is_set():
            await self._pause(RETRY_AFTER_S if self._problem else WRITE_EVERY_S)
            await self._write()
        await self._write()  # what came while the last batch was written

    async def close(self, keeping: "asyncio.Task[None]") -> None:
        """End the task that runs `keep`, after a last write if that does not take long."""
        self._is_closing.set()
        await asyncio.wait({keeping}, timeout=_CLOSE_WITHIN_S)
        if not keeping.done():
            keeping.cancel()
            logger.error("usage could not be written within %g s: %s", _CLOSE_WITHIN_S, self._path)

    async def read(self, by: Sequence[str], since: str, limit: int) -> Groups:
        """Return the sums that `read_usage` gives, and in them what is not written yet.

        Raises `UsageUnavailableError`.
        """
        try:
            async with asyncio.timeout(_READ_WITHIN_S):
                await self._write()
                async with self._writing:
                    groups = await asyncio.to_thread(read_usage, self._path, by, since, limit)
        except TimeoutError:
            raise UsageUnavailableError(f"the usage file {self._path} is not read in time") from None
        columns = [GROUPS.index(name) for name in by]
        for key, usage in self._waiting.items():
            if key.day >= since:
                group = tuple(key[column] for column in columns)
                groups[group] = groups.get(group, Usage()).plus(usage)
        return groups

    def _add(self, counts: Counts) -> None:
        for key, usage in counts.items():
            if key in self._waiting or len(self._waiting) < MAX_WAITING:
                self._waiting[key] = self._waiting.get(key, Usage()).plus(usage)
            elif not self._has_dropped:
                self._has_dropped = True
                logger.error("usage is not counted any more: %d rows wait to be written", MAX_WAITING)

    async def _write(self) -> None:
        """Write what waits, to the end, even if whoever waits for that is cancelled."""
        if self._waiting:
            self._batch = asyncio.create_task(self._write_batch(), name="write usage")
            await asyncio.shield(self._batch)

    async def _write_batch(self) -> None:
        async with self._writing:
            counts, self._waiting = self._waiting, {}
            try:
                await asyncio.to_thread(add_usage, self._path, counts)
            except UsageUnavailableError as error:
                self._add(counts)
                self._note(str(error))
            else:
                self._has_dropped = False
                self._note("")

    def _note(self, problem: str) -> None:
        """Log a problem once, however often it is met, and its end."""
        if problem and problem != self._problem:
            logger.error("usage is not written, and kept in memory until it can be: %s", problem)
        if self._problem and not problem:
            logger.info("usage is written again: %s", self._path)
        self._problem = problem

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_closing.wait()
