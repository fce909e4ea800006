"""The batching strategies of the literature, as rules the scheduler asks: may a group start, and who runs now?

`continuous` is what a server wants (Orca, Yu et al., OSDI 2022). The others are there to be compared with.
"""

from collections.abc import Sequence
from typing import Protocol

from orcinus.config.engine_config import BatchingStrategy
from orcinus.engine.scheduler.fair_queue import FairQueue
from orcinus.engine.scheduler.request import Request


class BatchingRule(Protocol):
    max_num_seqs: int

    def admission_delay_s(self, running: Sequence[Request], waiting: FairQueue, now: float) -> float | None:
        """Return the seconds until requests may take slots: 0 is now, None not before a running one ends."""

    def select(self, running: Sequence[Request]) -> Sequence[Request]:
        """Return the running requests that take part in this step."""


class Continuous:
    """Fills a free slot in the very next step; every running request takes part in every step."""

    def __init__(self, max_num_seqs: int) -> None:
        self.max_num_seqs = max_num_seqs

    def admission_delay_s(self, running: Sequence[Request], waiting: FairQueue, now: float) -> float | None:
        return 0.0

    def select(self, running: Sequence[Request]) -> Sequence[Request]:
        return running


class Interleaved(Continuous):
    """Fills slots as `Continuous` does, but each step runs one request alone, round-robin."""

    def select(self, running: Sequence[Request]) -> Sequence[Request]:
        return [min(running, key=lambda request: (request.last_scheduled_step, request.order))] if running else []


class Static(Continuous):
    """Starts a group when all slots can be filled, or the oldest has waited long enough; the group ends as one."""

    def __init__(self, max_num_seqs: int, batch_wait_s: float) -> None:
        super().__init__(max_num_seqs)
        self._batch_wait_s = batch_wait_s

    def admission_delay_s(self, running: Sequence[Request], waiting: FairQueue, now: float) -> float | None:
        if running:
            return None
        oldest = waiting.oldest()
        if oldest is None or len(waiting) >= self.max_num_seqs:
            return 0.0
        return max(0.0, oldest.queued_since + self._batch_wait_s - now)


def batching_rule(strategy: BatchingStrategy, max_num_seqs: int, batch_wait_s: float) -> BatchingRule:
    match strategy:
        case "continuous":
            return Continuous(max_num_seqs)
        case "interleaved":
            return Interleaved(max_num_seqs)
        case "static":
            return Static(max_num_seqs, batch_wait_s)
        case "sequential":
            return Continuous(1)
