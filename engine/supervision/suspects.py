"""Whom to suspect when an engine ends, and whom the next one is given when: rules about ids, and nothing else.

Whoever had begun to run and was not done is a suspect. The next engine is given the suspects one at a time, each once
the one before has brought something or is gone, and all others after them. So a request that ends engines ends one
more, with nobody beside it that has yet to prove itself, and is known by that. Whoever brings something is cleared. An
engine that was killed from outside, which may come at any moment, counts half, and nothing for who had brought
something. Knows nothing of processes.
"""

from collections import deque
from dataclasses import dataclass

_MAX_STRIKES = 4
_STRIKES_OF_A_FAULT = 2
_STRIKES_OF_A_KILL = 1


@dataclass(slots=True, eq=False)
class _Standing:
    request_id: str
    strikes: int = 0  # for the engines in a row that ended while they ran it, since it brought something
    is_suspect: bool = False
    has_begun: bool = False  # in the engine that runs now
    has_progressed: bool = False  # there


class Probation:
    """The requests in flight. `due` says which of them the engine that runs now is to be given."""

    def __init__(self) -> None:
        self._standings: dict[str, _Standing] = {}
        self._suspects: deque[_Standing] = deque()  # the first one may be on trial
        self._is_on_trial = False
        self._others: list[_Standing] = []

    @property
    def holds_back(self) -> bool:
        """Whether somebody has yet to be given to the engine, or is on trial there."""
        return bool(self._suspects or self._others)

    def add(self, request_id: str) -> None:
        standing = self._standings[request_id] = _Standing(request_id)
        self._others.append(standing)

    def remove(self, request_id: str) -> None:
        """It has ended, in whatever way."""
        del self._standings[request_id]

    def begin(self, request_ids: list[str]) -> None:
        """The engine is about to run these. Ids that are not known any more are fine."""
        for request_id in request_ids:
            if (standing := self._standings.get(request_id)) is not None:
                standing.has_begun = True

    def progress(self, request_id: str) -> None:
        self._standings[request_id].has_progressed = True

    def due(self) -> list[str]:
        """Those whom the engine may be given now, each of them once for each engine."""
        while self._suspects:
            first = self._suspects[0]
            if self._is_gone(first) or first.has_progressed:
                first.is_suspect = self._is_on_trial = False
                self._suspects.popleft()
            elif self._is_on_trial:
                return []
            else:
                self._is_on_trial = True
                return [first.request_id]
        due = [standing.request_id for standing in self._others if not self._is_gone(standing)]
        self._others = []
        return due

    def bury(self, *, was_killed: bool) -> list[str]:
        """The engine has ended. Returns those who are convicted, for the caller to end and `remove`."""
        self._others = []
        self._suspects.clear()
        self._is_on_trial = False
        for standing in self._standings.values():
            self._judge(standing, was_killed)
            (self._suspects if standing.is_suspect else self._others).append(standing)
        return [suspect.request_id for suspect in self._suspects if suspect.strikes >= _MAX_STRIKES]

    def _judge(self, standing: _Standing, was_killed: bool) -> None:
        if standing.has_progressed:
            standing.strikes = 0
        if standing.has_begun:
            standing.is_suspect = True
            if not was_killed:
                standing.strikes += _STRIKES_OF_A_FAULT
            elif not standing.has_progressed:
                standing.strikes += _STRIKES_OF_A_KILL
        standing.has_begun = standing.has_progressed = False

    def _is_gone(self, standing: _Standing) -> bool:
        return standing.request_id not in self._standings
