"""Which requests are suspected of ending engines, and which of them the next engine is given when.

A request that had begun to run and was not done when its engine ended is a suspect. The next engine is given the
suspects one at a time, each once the one before has brought tokens or has ended, and all other requests after them. So
a request that ends engines ends one more, with no other unproven request beside it, and is known by that. A request
that brings tokens is cleared. The end of an engine that was killed from outside, which may come at any moment, counts
half, and does not count for a request that had brought tokens. These are rules about ids: processes are unknown here.
"""

from collections import deque
from dataclasses import dataclass

_MAX_STRIKES = 4
_STRIKES_OF_A_FAULT = 2
_STRIKES_OF_A_KILL = 1


@dataclass(slots=True, eq=False)
class _Record:
    """Holds what is known of one request in flight."""

    request_id: str
    strikes: int = 0  # for the engines in a row that ended while they ran it, since it brought tokens
    is_suspect: bool = False
    has_begun: bool = False  # in the engine that runs now
    has_progressed: bool = False  # there


class SuspectTracker:
    """The requests in flight at one engine and its successors; `take_due` releases those it may be given now."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._suspects: deque[_Record] = deque()  # the first one may be under test
        self._is_testing = False
        self._others: list[_Record] = []

    @property
    def has_pending(self) -> bool:
        """Whether a request has yet to be given to the engine, or is under test there."""
        return bool(self._suspects or self._others)

    def add(self, request_id: str) -> None:
        """Take up a new request. Its id must be unique among those in flight."""
        record = self._records[request_id] = _Record(request_id)
        self._others.append(record)

    def remove(self, request_id: str) -> None:
        """Forget a request that has ended, in whatever way."""
        del self._records[request_id]

    def on_started(self, request_ids: list[str]) -> None:
        """Note that the engine is about to run these requests for the first time. Unknown ids are fine."""
        for request_id in request_ids:
            if (record := self._records.get(request_id)) is not None:
                record.has_begun = True

    def on_progress(self, request_id: str) -> None:
        """Note that the engine has brought tokens of this request, which clears it."""
        self._records[request_id].has_progressed = True

    def take_due(self) -> list[str]:
        """Return the requests that the engine may be given now, each of them once for each engine."""
        while self._suspects:
            first = self._suspects[0]
            if self._has_ended(first) or first.has_progressed:
                first.is_suspect = self._is_testing = False
                self._suspects.popleft()
            elif self._is_testing:
                return []
            else:
                self._is_testing = True
                return [first.request_id]
        due = [record.request_id for record in self._others if not self._has_ended(record)]
        self._others = []
        return due

    def on_engine_end(self, *, was_killed: bool) -> list[str]:
        """Return the requests found to end engines, for the caller to end and `remove`; all others are due again."""
        self._others = []
        self._suspects.clear()
        self._is_testing = False
        for record in self._records.values():
            self._judge(record, was_killed)
            (self._suspects if record.is_suspect else self._others).append(record)
        return [suspect.request_id for suspect in self._suspects if suspect.strikes >= _MAX_STRIKES]

    def _judge(self, record: _Record, was_killed: bool) -> None:
        if record.has_progressed:
            record.strikes = 0
        if record.has_begun:
            record.is_suspect = True
            if not was_killed:
                record.strikes += _STRIKES_OF_A_FAULT
            elif not record.has_progressed:
                record.strikes += _STRIKES_OF_A_KILL
        record.has_begun = record.has_progressed = False

    def _has_ended(self, record: _Record) -> bool:
        return record.request_id not in self._records
