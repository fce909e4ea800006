"""Which requests run: the slots, the KV blocks behind them, and the way from the queue to a slot and back.

A request that runs has a slot and blocks, any other has neither and waits. Refuses to know why a request comes or
goes, and what a step computes.
"""

import bisect

from orcinus.engine.scheduler.block_manager import BlockManager
from orcinus.engine.scheduler.fair_queue import FairQueue
from orcinus.engine.scheduler.prefix_reuse import PrefixReuse
from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.slot_time import SlotTime


class Slots:
    """Used by one thread."""

    def __init__(self, blocks: BlockManager, waiting: FairQueue, time_held: SlotTime, prefixes: PrefixReuse) -> None:
        self.blocks = blocks
        self.prefixes = prefixes
        self.waiting = waiting
        self._time_held = time_held
        self.running: list[Request] = []  # by `Request.order`
        self.released: list[str] = []  # requests that left, which the executor has not been told of

    def by_service(self) -> list[Request]:
        """Return the running requests, those first whose client had least: the last one is the first to make room."""
        return self.waiting.by_service(self.running)

    def allocate(self, request: Request) -> bool:
        """Give a waiting request blocks for all tokens it has, so that only decoding can run out of them later.

        Returns False, with nothing changed, if they would leave the running requests too few to grow into.
        """
        prefix = self.prefixes.find(request)
        growth_reserve = len(self.running)  # each running request needs its next block before long
        needed = self.blocks.blocks_for(request.num_tokens) - len(prefix)
        if self.running and needed + growth_reserve > self.blocks.num_free_excluding(prefix):
            return False
        if self.blocks.allocate(request.request_id, request.num_tokens, prefix) is None:
            return False
        self.prefixes.begin(request, len(prefix))
        return True

    def take(self, request: Request) -> None:
        """Let a waiting request, which has got its blocks, run."""
        self.waiting.take(request)
        self._time_held.hold()
        request.is_running = True
        bisect.insort(self.running, request, key=lambda running: running.order)

    def preempt(self, request: Request, now: float) -> None:
        """Take slot and blocks from a request, which waits in its old place, and whose tokens are recomputed."""
        self._leave(request)
        request.forget_computed(now)
        self.waiting.push(request)

    def remove(self, request: Request) -> None:
        """Remove a request that ended, from its slot or from the queue."""
        if request.is_running:
            self._leave(request)
        else:
            self.waiting.remove(request)

    def _leave(self, request: Request) -> None:
        self._time_held.release()
        request.is_running = False
        self.running.remove(request)
        self.prefixes.leave(request)
        self.blocks.free(request.request_id)
        if request.is_known:
            self.released.append(request.request_id)

    def book_blocks(self, request: Request, start: int, end: int) -> None:
        """Make the blocks findable that became full when tokens `start` to `end` were computed, which are known.

        Blocks that no later token sees are free from then on.
        """
        block_size = self.blocks.block_size
        if start // block_size == end // block_size:
            return
        self.prefixes.book(request, start, end)
        self.blocks.release_behind(request.request_id, end)

    def check_integrity(self, requests: dict[str, Request]) -> None:
        """Raise `AssertionError` where the books do not balance; `requests` are all that there are."""
        self.blocks.check_integrity()
        self.prefixes.check_integrity(self.running)
        running = {request.request_id for request in self.running}
        assert len(running) == len(self.running), "a request has two slots"
        assert self.running == sorted(self.running, key=lambda request: request.order), "order"
        assert len(running) + len(self.waiting) == len(requests), "a request is lost"
        for request_id, request in requests.items():
            table = self.blocks.block_table(request_id)
            is_running = request.is_running
            assert is_running == (request_id in running) == (request_id not in self.waiting), request_id
            assert bool(table) == is_running, f"{request_id} has blocks and no slot, or the reverse"
            assert request.num_computed_tokens <= request.num_tokens, request_id
            assert request.num_computed_tokens <= len(table) * self.blocks.block_size, request_id
            assert is_running or not request.is_known, request_id
        if not running:
            assert self.blocks.num_used_blocks == 0, "blocks are held by nobody"
