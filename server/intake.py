"""Who is on the way in: requests whose heads have come and which the engine does not have yet.

The first signal to end closes it: nobody new comes in, and those who are in go on to the engine, however long their
bodies take to come and to be read. Knows neither signals nor bodies.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orcinus.engine.errors import DrainingError


class Intake:
    """Holds requests on their way in. Open until `close`."""

    def __init__(self) -> None:
        self._is_closed = False
        self._inside: set[asyncio.Timeout] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def check(self) -> None:
        """Raise `DrainingError` if it is closed."""
        if self._is_closed:
            raise DrainingError("the server is shutting down and takes no new requests")

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Count a request that is on its way. Raises `DrainingError` where it is too late, or at `give_up`."""
        self.check()
        try:
            async with asyncio.timeout(None) as limit:
                self._inside.add(limit)
                self._is_empty.clear()
                try:
                    yield
                finally:
                    self._inside.remove(limit)
                    if not self._inside:
                        self._is_empty.set()
        except TimeoutError:
            if not limit.expired():
                raise
            raise DrainingError("the server is shutting down and could not wait for this request") from None

    def close(self) -> None:
        self._is_closed = True

    async def wait_empty(self) -> None:
        await self._is_empty.wait()

    def give_up(self) -> None:
        """End the requests that are still on their way, with a `DrainingError`."""
        now = asyncio.get_running_loop().time()
        for limit in self._inside:
            if not limit.expired():
                limit.reschedule(now)
