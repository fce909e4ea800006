"""Who is on the way in: requests whose heads have come and which the engine does not have yet.

They are bounded in number, in all and by client, and each in time. The first signal to end closes the intake: nobody
new comes in, and those who are in go on to the engine, however long their bodies take to come and to be read. Knows
neither signals nor bodies.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from orcinus.config.limits import NO_LIMITS, ClientLimits
from orcinus.engine.errors import DrainingError, QueueFullError, QuotaError

_RETRY_AFTER_S = 1.0  # a guess: preparing takes milliseconds where nothing unusual is asked
_CLIENT_SHARE = 2  # one of several clients may have half of the places


class Passage:
    """One request on its way in, to be ended with `error` by its deadline, or by `end`."""

    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self.error: Exception | None = None
        self._is_ended = False

    def end_in(self, seconds: float, error: Exception) -> None:
        """Set its deadline, and the error to end with there unless it is through by then."""
        if not self._is_ended:
            self._expire(seconds, error)

    def end(self, error: Exception) -> None:
        """End it now. The first error counts."""
        if not self._is_ended:
            self._is_ended = True
            self._expire(0.0, error)

    def _expire(self, seconds: float, error: Exception) -> None:
        if not self._limit.expired():
            self.error = error
            self._limit.reschedule(asyncio.get_running_loop().time() + seconds)


class Intake:
    """Holds requests on their way in, `max_requests` at once. Open until `close`.

    A known client may have half of the places, and no more than its `max_requests`. `limits` are those of all clients,
    unless `limits_of` gives others.
    """

    def __init__(self, max_requests: int, limits: ClientLimits = NO_LIMITS) -> None:
        self.limits_of: Callable[[str], ClientLimits] = lambda client: limits
        self._max_requests = max_requests
        self._is_closed = False
        self._inside: set[Passage] = set()
        self._num_inside = Counter[str]()  # by client
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def check(self) -> None:
        """Raise `DrainingError` if it is closed."""
        if self._is_closed:
            raise DrainingError("the server is shutting down and takes no new requests")

    def check_room(self, client: str) -> None:
        """Raise `QueueFullError` or `QuotaError` where there is no place for one more request of this client."""
        if len(self._inside) >= self._max_requests:
            raise QueueFullError(
                f"at most {self._max_requests} requests are read and prepared at once (max_preparing),"
                f" and {len(self._inside)} are",
                _RETRY_AFTER_S,
            )
        most, setting = self._max_of(client)
        if self._num_inside[client] >= most:
            raise QuotaError(
                f"at most {most} requests of one client are read and prepared at once ({setting}),"
                f" and {self._num_inside[client]} are",
                _RETRY_AFTER_S,
            )

    @asynccontextmanager
    async def enter(self, client: str = "") -> AsyncIterator[Passage]:
        """Count a request that is on its way, and let it be ended from outside.

        Raises what `check` and `check_room` raise, `DrainingError` at `give_up`, and what its `Passage` ends with.
        """
        self.check()
        self.check_room(client)
        try:
            async with asyncio.timeout(None) as limit:
                passage = Passage(limit)
                self._add(passage, client)
                try:
                    yield passage
                finally:
                    self._remove(passage, client)
        except TimeoutError:
            if not limit.expired() or passage.error is None:
                raise
            raise passage.error from None

    def close(self) -> None:
        self._is_closed = True

    async def wait_empty(self) -> None:
        await self._is_empty.wait()

    def give_up(self) -> None:
        """End the requests that are still on their way, with a `DrainingError`."""
        for passage in self._inside:
            passage.end(DrainingError("the server is shutting down and could not wait for this request"))

    def _max_of(self, client: str) -> tuple[int, str]:
        """Return how many requests a client may have inside, and which setting says so."""
        most, setting = self._max_requests, "max_preparing"
        if client:
            most, setting = max(1, most // _CLIENT_SHARE), "half of max_preparing"
        limit = self.limits_of(client).max_requests
        return (most, setting) if limit is None or limit.value >= most else (limit.value, limit.source)

    def _add(self, passage: Passage, client: str) -> None:
        self._inside.add(passage)
        self._num_inside[client] += 1
        self._is_empty.clear()

    def _remove(self, passage: Passage, client: str) -> None:
        self._inside.remove(passage)
        self._num_inside[client] -= 1
        if not self._num_inside[client]:
            del self._num_inside[client]
        if not self._inside:
            self._is_empty.set()
