"""Which snapshots of states there are: copies of what a model keeps of a sequence besides keys and values.

A snapshot is of a prefix that ends with a full block, and is found by the hash of that block, which stands for all
tokens up to its end. Deals in rows, hashes and numbers of blocks: knows nothing of requests, tensors or of where
snapshots are worth taking.

All snapshots take the same memory and differ in what it would cost to do without one: the blocks to compute from the
nearest snapshot before it, or from the start. So what is evicted is the least recently used, weighted by that cost: the
rule is GreedyDual (Young, "The k-server dual and loose competitiveness for paging", 1994). A snapshot's priority is the
clock at its last use plus its cost. The lowest goes first, of several the one that has been there for the longest, and
the clock is set to its priority: so one that nobody uses falls behind those that come later, an expensive one later. A
new snapshot that would be the first to go is not taken; the clock moves as if it had been, but not for a rolling one,
which its request will soon offer again. When a snapshot goes, those behind it cost more, and when one comes between
two, the later one costs less.
"""

import heapq
from collections.abc import KeysView, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Snapshot:
    """A copy of a state. `hashes` are those of all blocks of its sequence, of which it has computed `num_blocks`."""

    row: int
    hashes: Sequence[bytes]
    num_blocks: int
    parent: "Snapshot | None"  # the nearest one of a shorter prefix of the same sequence
    is_rolling: bool  # the newest one of a request that goes on, and of interest to nobody else yet
    used_at: int = 0  # the clock at its last use
    num_holds: int = 0
    priority: int = 0
    number: int = 0  # of its place in the queue
    children: "dict[Snapshot, None]" = field(default_factory=dict)

    @property
    def key(self) -> bytes:
        return self.hashes[self.num_blocks - 1]

    @property
    def cost(self) -> int:
        """Return how many blocks would be computed without it."""
        return self.num_blocks - (0 if self.parent is None else self.parent.num_blocks)


@dataclass(slots=True)
class SnapshotCounts:
    """Counts what became of snapshots. `num_evictions` leaves out those that later ones take the place of."""

    num_loads: int = 0
    num_saves: int = 0
    num_evictions: int = 0


class StateCache:
    """Knows what is in rows `0 .. num_rows - 1`.

    A row is free, or written to by a step that is planned (`reserve`), or has a snapshot (`put`). Those that are held
    are not evicted. A reserved row comes back by `put` or by `drop`.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.counts = SnapshotCounts()
        self._free = list(range(num_rows - 1, -1, -1))
        self._reserved: set[int] = set()
        self._found: dict[bytes, Snapshot] = {}
        self._first: dict[Snapshot, None] = {}  # those without a parent
        self._clock = 0
        self._queue: list[tuple[int, int, Snapshot]] = []  # by priority; has entries that are out of date
        self._num_queued = 0

    @property
    def num_snapshots(self) -> int:
        return len(self._found)

    @property
    def hashes(self) -> KeysView[bytes]:
        """The hashes of the blocks that have a snapshot after them."""
        return self._found.keys()

    def take_counts(self) -> SnapshotCounts:
        """Return what was counted since the last call."""
        counts, self.counts = self.counts, SnapshotCounts()
        return counts

    def find(self, block_hash: bytes) -> Snapshot | None:
        return self._found.get(block_hash)

    def nearest(self, block_hashes: Sequence[bytes], num_blocks: int) -> Snapshot | None:
        """Return the snapshot after the most of these blocks, and at most `num_blocks` of them."""
        for index in range(num_blocks - 1, -1, -1):
            if (found := self._found.get(block_hashes[index])) is not None:
                return found
        return None

    def hold(self, snapshot: Snapshot) -> None:
        """Keep a snapshot from being evicted, once more: it is going to be used. It is not a rolling one any more."""
        snapshot.num_holds += 1
        snapshot.is_rolling = False

    def release(self, snapshot: Snapshot, *, was_used: bool) -> None:
        """Give up one hold."""
        snapshot.num_holds -= 1
        if was_used:
            self.touch(snapshot)

    def touch(self, snapshot: Snapshot) -> None:
        """Note that a snapshot is of use now."""
        snapshot.used_at = self._clock
        self._queue_up(snapshot)

    def reserve(self, cost: int, *, is_rolling: bool = False, instead_of: Snapshot | None = None) -> int | None:
        """Return a row for a new snapshot, which would save that many blocks; None if it is not worth one.

        Without a free row `instead_of`, which it would take the place of, gives up its own if it is still there and
        nobody else's; or else the one that is evicted does.
        """
        if not self._free and instead_of is not None:
            self.discard(instead_of)
        if not self._free and not self._evict_for(cost, is_rolling=is_rolling):
            return None
        row = self._free.pop()
        self._reserved.add(row)
        return row

    def put(self, row: int, hashes: Sequence[bytes], num_blocks: int, *, is_rolling: bool) -> Snapshot | None:
        """Make the snapshot in a reserved row findable. If there is one of these blocks already, None: the row is free.

        `hashes` must stay as they are, but may be appended to.
        """
        self._reserved.remove(row)
        if (there := self._found.get(hashes[num_blocks - 1])) is not None:
            self._free.append(row)
            self.touch(there)
            return None
        parent = self.nearest(hashes, num_blocks - 1)
        snapshot = Snapshot(row, hashes, num_blocks, parent, is_rolling, used_at=self._clock)
        siblings = self._first if parent is None else parent.children
        for other in [other for other in siblings if _is_behind(other, snapshot)]:
            del siblings[other]
            self._set_parent(other, snapshot)
        siblings[snapshot] = None
        self._found[snapshot.key] = snapshot
        self._queue_up(snapshot)
        return snapshot

    def drop(self, row: int) -> None:
        """Give a reserved row back: what was to be in it is not."""
        self._reserved.remove(row)
        self._free.append(row)

    def discard(self, snapshot: Snapshot) -> None:
        """Remove a rolling snapshot, which a later one takes the place of, if it is still there and is nothing else."""
        if self._found.get(snapshot.key) is snapshot and snapshot.is_rolling:
            self._remove(snapshot)

    def forget(self, block_hash: bytes) -> None:
        """Remove the snapshot after a block that is not cached any more, if there is one: nobody can use it."""
        if (snapshot := self._found.get(block_hash)) is not None:
            assert not snapshot.num_holds, "who holds a snapshot holds its blocks"
            self._remove(snapshot)

    def check_integrity(self, reserved: set[int], num_holds: Mapping[Snapshot, int]) -> None:
        """Raise `AssertionError` unless the books match the rows that are written to, and who holds what."""
        snapshots = [*self._found.values()]
        rows = [*self._free, *self._reserved, *(snapshot.row for snapshot in snapshots)]
        assert sorted(rows) == [*range(self.num_rows)], "a row is lost, or has two owners"
        assert self._reserved == reserved, "reserved rows differ"
        assert {snapshot: snapshot.num_holds for snapshot in snapshots if snapshot.num_holds} == num_holds, "holds"
        current = {entry[2]: entry for entry in self._queue if entry[1] == entry[2].number}
        assert current.keys() == set(snapshots), "the queue has lost one, or keeps one"
        for snapshot in snapshots:
            assert self._found[snapshot.key] is snapshot
            assert snapshot.parent is self.nearest(snapshot.hashes, snapshot.num_blocks - 1), "the nearest is another"
            siblings = self._first if snapshot.parent is None else snapshot.parent.children
            assert snapshot in siblings
            assert current[snapshot][0] == snapshot.priority == snapshot.used_at + snapshot.cost, "priority"
            assert snapshot.used_at <= self._clock
        assert len(self._first) + sum(len(snapshot.children) for snapshot in snapshots) == len(snapshots), "a child"

    def _evict_for(self, cost: int, *, is_rolling: bool) -> bool:
        """Evict what is worth the least. Return False if that is the newcomer, or all are held."""
        lowest = self._lowest()
        own = self._clock + cost
        if lowest is None:
            return False
        if own < lowest.priority:
            if not is_rolling:
                self._clock = own
            return False
        self._clock = max(self._clock, lowest.priority)
        self.counts.num_evictions += 1
        self._remove(lowest)
        return True

    def _lowest(self) -> Snapshot | None:
        """Return the snapshot of the lowest priority that nobody holds."""
        held = []
        lowest = None
        while self._queue and lowest is None:
            _, number, snapshot = self._queue[0]
            if number != snapshot.number:  # out of date
                heapq.heappop(self._queue)
            elif snapshot.num_holds:
                held.append(heapq.heappop(self._queue))
            else:
                lowest = snapshot
        for entry in held:
            heapq.heappush(self._queue, entry)
        return lowest

    def _queue_up(self, snapshot: Snapshot) -> None:
        """Put a snapshot where its last use and its cost want it to be."""
        snapshot.priority = snapshot.used_at + snapshot.cost
        self._num_queued += 1
        snapshot.number = self._num_queued
        heapq.heappush(self._queue, (snapshot.priority, snapshot.number, snapshot))
        if len(self._queue) > 4 * self.num_rows + 64:
            self._queue = [entry for entry in self._queue if entry[1] == entry[2].number]
            heapq.heapify(self._queue)

    def _set_parent(self, snapshot: Snapshot, parent: Snapshot | None) -> None:
        snapshot.parent = parent
        (self._first if parent is None else parent.children)[snapshot] = None
        self._queue_up(snapshot)

    def _remove(self, snapshot: Snapshot) -> None:
        del self._found[snapshot.key]
        del (self._first if snapshot.parent is None else snapshot.parent.children)[snapshot]
        for child in snapshot.children:
            self._set_parent(child, snapshot.parent)
        snapshot.children.clear()
        snapshot.number = 0
        self._free.append(snapshot.row)


def _is_behind(snapshot: Snapshot, earlier: Snapshot) -> bool:
    """Return whether a snapshot is of a sequence that begins with all that an earlier one is of."""
    return snapshot.num_blocks > earlier.num_blocks and snapshot.hashes[earlier.num_blocks - 1] == earlier.key
