"""Which requests are suspected of ending engines, and which of them the next engine is given when.

A request that was in a step and had brought nothing since when its engine ended may be the reason, as may every other
such request. After the first end all of them run again, with all others and at once: most engines end for reasons that
are no request's, and would have been as well off with another order. Where a request is among them again, without a
token in between, the next engine is given such requests one at a time, each once the one before has brought tokens or
has ended, and all other requests after them. So one that ends engines does so once with nothing unproven beside it, and
is known by that; the others run together again.

A request that brings tokens is cleared. The end of an engine that was killed from outside, which may come at any
moment, counts half, and does not count for a request that had brought tokens; and such a kill has to meet the same
request alone twice. These are rules about ids: processes are unknown here.

Where there are other engines, requests may go on there instead (`free`), but for those that may be why their engine
ended: they had brought nothing in it, and have the strikes of a fault. These are bound to the engine's successors until
they bring tokens, so that a request which ends engines is no reason for others to end.
"""

from collections import deque
from dataclasses import dataclass

_STRIKES_OF_A_FAULT = 2
_STRIKES_OF_A_KILL = 1
_STRIKES_TO_ISOLATE = 3  # two faults, a fault and a kill, or three kills
_STRIKES_TO_CONVICT = 4  # and nothing unproven beside it the last time, or for a kill
_KILLS_TO_CONVICT = 2  # so many times


@dataclass(slots=True, eq=False)
class _Record:
    """Holds what is known of one request in flight."""

    request_id: str
    strikes: int = 0  # for the engines in a row that ended while they ran it, since it brought tokens
    num_alone: int = 0  # of these engines, those in which nothing else was unproven
    has_begun: bool = False  # in the engine that runs now
    has_progressed: bool = False  # there
    was_sound: bool = False  # it has brought tokens in some engine
    is_bound: bool = False  # to the successors of the engine that ended while it ran

    @property
    def is_unproven(self) -> bool:
        """Whether it may be the reason if the engine ends now."""
        return self.has_begun and not self.has_progressed


@dataclass(frozen=True, slots=True)
class Findings:
    """Tells what an engine's end has shown: `culprits` end engines, and with new suspects more will be tried alone."""

    culprits: list[str]
    has_new_suspects: bool


class SuspectTracker:
    """The requests in flight at one engine and its successors; `take_due` releases those it may be given now."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self._isolated: deque[_Record] = deque()  # the first one may be under test
        self._is_testing = False
        self._others: list[_Record] = []

    @property
    def has_pending(self) -> bool:
        """Whether a request has yet to be given to the engine, or is under test there."""
        return bool(self._isolated or self._others)

    def add(self, request_id: str) -> None:
        """Take up a new request. Its id must be unique among those in flight."""
        record = self._records[request_id] = _Record(request_id)
        self._others.append(record)

    def remove(self, request_id: str) -> None:
        """Forget a request that has ended, in whatever way."""
        del self._records[request_id]

    def free(self) -> list[str]:
        """Return the requests that another engine may be given while this one is replaced."""
        return [record.request_id for record in self._records.values() if not record.is_bound]

    def hand_over(self, request_id: str, other: "SuspectTracker") -> None:
        """Have `other` go on with a request, and with what is known of it."""
        record = self._records.pop(request_id)
        if record in self._others:
            self._others.remove(record)
        other._records[request_id] = record
        other._others.append(record)

    def on_started(self, request_ids: list[str]) -> None:
        """Note that the engine is about to run these requests for the first time. Unknown ids are fine."""
        for request_id in request_ids:
            if (record := self._records.get(request_id)) is not None:
                record.has_begun = True

    def on_progress(self, request_id: str) -> None:
        """Note that the engine has brought tokens of this request, which clears it."""
        record = self._records[request_id]
        record.has_progressed = record.was_sound = True
        record.is_bound = False

    def take_due(self) -> list[str]:
        """Return the requests that the engine may be given now, each of them once for each engine."""
        while self._isolated:
            first = self._isolated[0]
            if self._has_ended(first) or first.has_progressed:
                self._is_testing = False
                self._isolated.popleft()
            elif self._is_testing:
                return []
            else:
                self._is_testing = True
                return [first.request_id]
        due = [record.request_id for record in self._others if not self._has_ended(record)]
        self._others = []
        return due

    def on_engine_end(self, *, was_killed: bool) -> Findings:
        """Take in how an engine ended. Culprits, of which there is one at most, are the caller's to end and `remove`.

        All other requests are due again.
        """
        unproven = [record for record in self._records.values() if record.is_unproven]
        num_suspects = sum(_is_suspect(record) for record in unproven)
        for record in self._records.values():
            _judge(record, was_killed)
        culprits = []
        if len(unproven) == 1:
            (sole,) = unproven
            sole.num_alone += 1
            if sole.strikes >= _STRIKES_TO_CONVICT and (not was_killed or sole.num_alone >= _KILLS_TO_CONVICT):
                culprits.append(sole.request_id)
                self._acquit()
        self._isolate()
        return Findings(culprits, sum(map(_is_suspect, unproven)) > num_suspects)

    def _acquit(self) -> None:
        """Take back what a culprit explains: all run together again, and are suspects with the next end."""
        for record in self._records.values():
            record.strikes = min(record.strikes, _STRIKES_OF_A_FAULT)
            record.is_bound = False

    def _isolate(self) -> None:
        """Make everything due again, the suspects first. Of these the likeliest, but not the one just tried alone."""
        isolated = [record for record in self._records.values() if _is_suspect(record)]
        isolated.sort(key=lambda record: (record.num_alone, record.was_sound))
        self._isolated = deque(isolated)
        self._others = [record for record in self._records.values() if not _is_suspect(record)]
        self._is_testing = False

    def _has_ended(self, record: _Record) -> bool:
        return record.request_id not in self._records


def _judge(record: _Record, was_killed: bool) -> None:
    was_unproven = record.is_unproven
    if record.has_progressed:
        record.strikes = record.num_alone = 0
    if record.has_begun and not was_killed:
        record.strikes += _STRIKES_OF_A_FAULT
    elif record.is_unproven:
        record.strikes += _STRIKES_OF_A_KILL
    record.is_bound = record.is_bound or (was_unproven and record.strikes >= _STRIKES_OF_A_FAULT)
    record.has_begun = record.has_progressed = False


def _is_suspect(record: _Record) -> bool:
    return record.strikes >= _STRIKES_TO_ISOLATE
