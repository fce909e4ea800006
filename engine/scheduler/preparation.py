"""Requests that the executor has yet to prepare for: held apart from the scheduler while the others go on.

What takes time (a grammar to compile) runs in the executor's threads. Knows nothing of what it is.
"""

from concurrent.futures import Future
from typing import Any, Protocol

from orcinus.engine.messages import AddRequest, RequestDelta
from orcinus.engine.sampling_params import SamplingParams

_POLL_S = 0.005


class Preparer(Protocol):
    """Names the part of `engine.core.Executor` that is used here."""

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None: ...


class Preparation:
    """Holds requests until they are ready. Used by one thread, between steps."""

    def __init__(self, preparer: Preparer) -> None:
        self._preparer = preparer
        self._held: dict[str, tuple[AddRequest, Future[Any]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, request: AddRequest) -> bool:
        """Begin to prepare a request. Return whether it has to wait here; if not, the scheduler may have it."""
        future = self._prepare(request.sampling)
        if future is None:
            return False
        self._held[request.request_id] = request, future
        return True

    def _prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        try:
            return self._preparer.prepare(sampling)
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._held.pop(request_id, None)

    def settle(self) -> tuple[list[tuple[AddRequest, Any]], list[RequestDelta]]:
        """Return the requests that are ready now, with what was prepared, and the end of those that never will be."""
        settled = [(request, future) for request, future in self._held.values() if future.done()]
        ready, failed = [], []
        for request, future in settled:
            del self._held[request.request_id]
            error = future.exception()
            if error is None:
                ready.append((request, future.result()))
            else:
                failed.append(RequestDelta(request_id=request.request_id, finish_reason="error", error=str(error)))
        return ready, failed

    def wait_time_s(self) -> float:
        """Return how long until it is worth looking again. Only while something is held."""
        return 0.0 if any(future.done() for _, future in self._held.values()) else _POLL_S
