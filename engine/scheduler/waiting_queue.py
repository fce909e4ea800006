"""The requests of one client that wait for a slot, in order of priority and arrival, such that none starves."""

import heapq
from typing import Any

from orcinus.engine.scheduler.request import Request

_Entry = tuple[Any, int, Request]  # sort key, number of the push, who

_MAX_DEAD = 64  # entries of requests that left; more are cleared away once they outnumber those that wait


class WaitingQueue:
    """Orders by `priority`, lower first, then arrival; a request that waited longer than `max_wait_s` goes first."""

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        # Requests may leave from the middle, and come back: an entry whose push is not the request's latest is
        # dead, and dropped when it surfaces, or with others when there are many.
        self._pushes: dict[str, int] = {}
        self._num_pushes = 0
        self._by_order: list[_Entry] = []
        self._by_age: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._pushes)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._pushes

    def push(self, request: Request) -> None:
        self._num_pushes += 1
        self._pushes[request.request_id] = self._num_pushes
        heapq.heappush(self._by_order, (request.order, self._num_pushes, request))
        heapq.heappush(self._by_age, (request.queued_since, self._num_pushes, request))

    def remove(self, request: Request) -> None:
        del self._pushes[request.request_id]
        self._by_order = self._without_dead(self._by_order)
        self._by_age = self._without_dead(self._by_age)

    def peek(self, now: float) -> Request | None:
        """Return the request whose turn it is, or None if none waits."""
        oldest = self.oldest()
        if oldest is not None and now - oldest.queued_since > self._max_wait_s:
            return oldest
        return self._top(self._by_order)

    def oldest(self) -> Request | None:
        """Return the request that has waited longest."""
        return self._top(self._by_age)

    def _top(self, heap: list[_Entry]) -> Request | None:
        while heap:
            if self._is_live(heap[0]):
                return heap[0][2]
            heapq.heappop(heap)
        return None

    def _without_dead(self, heap: list[_Entry]) -> list[_Entry]:
        """Return the heap, or a smaller one without dead entries.

        While no request gets a slot, nothing surfaces, and many may come and leave.
        """
        if len(heap) <= 2 * len(self._pushes) + _MAX_DEAD:
            return heap
        live = [entry for entry in heap if self._is_live(entry)]
        heapq.heapify(live)
        return live

    def _is_live(self, entry: _Entry) -> bool:
        _, push, request = entry
        return self._pushes.get(request.request_id) == push
