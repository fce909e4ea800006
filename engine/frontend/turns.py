"""Whose turn it is for the few threads and processes that prepare requests: clients take turns, whatever each asks for.

A client is an opaque name, "" where there are none. It is said once for all that a task does (`on_behalf_of`). Knows
nothing of what is done in a turn.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

T = TypeVar("T")

_client = ContextVar("client", default="")


def current_client() -> str:
    """Return the client whose request this task works on."""
    return _client.get()


@contextlib.contextmanager
def on_behalf_of(client: str) -> Iterator[None]:
    """Say whose request is worked on in the block, and in tasks that begin there."""
    token = _client.set(client)
    try:
        yield
    finally:
        _client.reset(token)


class FairSemaphore:
    """Places that clients take in turns: round robin over those that wait, first come first served within each.

    Of the places, `num_reserved` are for clients that have none. So one client that keeps its places for long leaves
    some to others. Used on one event loop.
    """

    def __init__(self, num_places: int, *, num_reserved: int = 0) -> None:
        self._num_free = num_places
        self._num_reserved = num_reserved
        self._held = Counter[str]()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by client, in the order of their turns

    @contextlib.asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Hold a place in the block."""
        await self.acquire(client)
        try:
            yield
        finally:
            self.release(client)

    async def acquire(self, client: str) -> None:
        """Wait for a place and take it."""
        if client not in self._waiting and self._may_take(client):
            self._take(client)
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._forget(client, granted)
            else:  # it was given the place in the same moment
                self.release(client)
            raise

    def release(self, client: str) -> None:
        """Give a place back, and to whoever has the next turn."""
        self._num_free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        self._grant()

    def _may_take(self, client: str) -> bool:
        return self._num_free > (self._num_reserved if client in self._held else 0)

    def _take(self, client: str) -> None:
        self._num_free -= 1
        self._held[client] += 1

    def _grant(self) -> None:
        while (client := next(filter(self._may_take, self._waiting), None)) is not None:
            queue = self._waiting.pop(client)
            granted = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind all others
            if not granted.done():
                self._take(client)
                granted.set_result(None)

    def _forget(self, client: str, granted: "asyncio.Future[None]") -> None:
        queue = self._waiting.get(client)
        if queue is not None and granted in queue:
            queue.remove(granted)
            if not queue:
                del self._waiting[client]


class FairThreads:
    """A thread pool in which clients take turns. Of several threads, one is for clients that have none."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._places = FairSemaphore(num_threads, num_reserved=min(1, num_threads - 1))
        self._threads = ThreadPoolExecutor(num_threads, name)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` gives in a thread, for the current client.

        Work that is under way is not ended where the caller is cancelled, and keeps its thread until it is done.
        """
        client, loop = current_client(), asyncio.get_running_loop()
        await self._places.acquire(client)
        future = self._threads.submit(work)
        future.add_done_callback(lambda _: _call_soon(loop, partial(self._places.release, client)))
        return await asyncio.wrap_future(future)

    def shutdown(self) -> None:
        """Drop what has not begun. Does not wait for the rest."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
        loop.call_soon_threadsafe(callback)
