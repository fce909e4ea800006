"""What happens in the slots, for whoever watches: which request has which slot since when, and what it holds.

Made when somebody begins to watch and dropped when nobody does, so that it costs nothing in between. Only reads what
the scheduler owns. Knows nothing of who watches.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from orcinus.engine.messages import SlotMove, SlotReport
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.slots import Slots

REPORT_INTERVAL_S = 0.1  # at least, while anything runs
MAX_SLOTS = 256  # that are told of
MAX_MOVES = 256  # in a report; where there are more, it tells anew what is in the slots


class SlotWatch:
    """`note` whenever a step is planned, and `report` after it. Used by the scheduler's thread.

    The scheduler counts slots and does not number them. Here a request that gets a slot has the lowest number that is
    free, and keeps it until it ends or is preempted.
    """

    def __init__(self, slots: Slots, clock: Callable[[], float]) -> None:
        self._slots = slots
        self._clock = clock
        self._stays: dict[str, _Stay] = {}  # by request id
        self._free: list[int] = []  # a heap of the numbers below `_num_known` that nobody has
        self._num_known = 0
        self._moves: list[SlotMove] = []
        self._is_whole = True  # the next report says all, and not what has changed
        self._last_report_s = -REPORT_INTERVAL_S

    def note(self) -> None:
        """Note who has left, come or begun to decode since the last time."""
        now = self._clock()
        running = {request.request_id: request for request in self._slots.running}
        for request_id in [known for known in self._stays if known not in running]:
            self._leave(request_id, now)
        for request in running.values():
            stay = self._stays.get(request.request_id) or self._come(request, now)
            if stay.decodes_s is None and len(request.token_ids) > request.num_prefill_tokens:
                stay.decodes_s = now
                self._tell(SlotMove(stay.number, now, "decodes"))
        if len(self._moves) > MAX_MOVES:
            self._moves.clear()
            self._is_whole = True

    def report(self) -> SlotReport | None:
        """Return what is in the slots, or None where the last report was a moment ago and something still runs."""
        self.note()
        now = self._clock()
        if now < self._last_report_s + REPORT_INTERVAL_S and self._slots.running:
            return None
        self._last_report_s = now
        moves = self._all_moves() if self._is_whole else self._moves
        computed, blocks = self._columns()
        report = SlotReport(moves=moves, is_whole=self._is_whole, num_computed_tokens=computed, num_blocks=blocks)
        self._moves, self._is_whole = [], False
        return report

    def _columns(self) -> tuple[list[int], list[int]]:
        """Return the tokens computed and the blocks held, by slot, 0 where a slot is free."""
        shown = [stay for stay in self._stays.values() if stay.number < MAX_SLOTS]
        size = max((stay.number + 1 for stay in shown), default=0)
        computed, blocks = [0] * size, [0] * size
        for stay in shown:
            computed[stay.number] = stay.request.num_computed_tokens
            blocks[stay.number] = len(self._slots.blocks.block_table(stay.request.request_id))
        return computed, blocks

    def _come(self, request: Request, now: float) -> "_Stay":
        if self._free:
            number = heapq.heappop(self._free)
        else:
            number, self._num_known = self._num_known, self._num_known + 1
        stay = self._stays[request.request_id] = _Stay(request, number, now, request.num_prefill_tokens)
        self._tell(stay.arrival())
        return stay

    def _leave(self, request_id: str, now: float) -> None:
        number = self._stays.pop(request_id).number
        heapq.heappush(self._free, number)
        self._tell(SlotMove(number, now, "left"))

    def _tell(self, move: SlotMove) -> None:
        if move.slot < MAX_SLOTS:
            self._moves.append(move)

    def _all_moves(self) -> list[SlotMove]:
        """Return the moves that lead to what is in the slots now."""
        moves = []
        for stay in self._stays.values():
            if stay.number < MAX_SLOTS:
                moves.append(stay.arrival())
                if stay.decodes_s is not None:
                    moves.append(SlotMove(stay.number, stay.decodes_s, "decodes"))
        return moves


@dataclass(slots=True)
class _Stay:
    """A request in the slot that has this number."""

    request: Request
    number: int
    came_s: float
    num_prefill_tokens: int
    decodes_s: float | None = None

    def arrival(self) -> SlotMove:
        return SlotMove(self.number, self.came_s, "came", self.request.request_id, self.num_prefill_tokens)
