"""The blocks of one pool: which are free, how often the others are held, and which can be found by a hash.

Deals in ids and hashes only: knows nothing of requests, their tables or what a block stores.
"""

from collections import OrderedDict
from collections.abc import KeysView, Sequence
from typing import Protocol


class HashFollower(Protocol):
    """Keeps something by the hashes of blocks that is of no use once the blocks cannot be found."""

    @property
    def hashes(self) -> KeysView[bytes]:
        """The hashes that it knows."""

    def forget(self, block_hash: bytes) -> None:
        """Forget what it keeps by this hash, which it may not know."""


class BlockPool:
    """Hands out blocks `0 .. num_blocks - 1`.

    A block is free or held, by one table or by several. A free block keeps its contents and its hash until it is handed
    out again, least recently freed first, so it can still be found by its hash. In `followers` a hash is of no use once
    this pool has lost it: they lose it too.
    """

    def __init__(self, num_blocks: int, followers: Sequence[HashFollower] = ()) -> None:
        self.num_blocks = num_blocks
        self._followers = tuple(followers)
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._ref_counts = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - len(self._free)

    @property
    def hashes(self) -> KeysView[bytes]:
        """The hashes by which blocks can be found."""
        return self._block_of.keys()

    def find(self, block_hash: bytes) -> int | None:
        return self._block_of.get(block_hash)

    def find_first(self, block_hashes: Sequence[bytes]) -> list[int]:
        """Return the blocks of these hashes up to the first one that is not known."""
        blocks = []
        for block_hash in block_hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_free_excluding(self, blocks: Sequence[int]) -> int:
        """Return how many free blocks would be left once these are taken."""
        return len(self._free) - sum(1 for block in blocks if self._ref_counts[block] == 0)

    def take(self, block: int) -> None:
        """Hold a block that was found, once more."""
        if self._ref_counts[block] == 0:
            del self._free[block]
        self._ref_counts[block] += 1

    def take_oldest_free(self) -> int:
        """Hold the block that has been free the longest, whose contents can be found no more."""
        assert self._free, "the pool has run dry"
        block, _ = self._free.popitem(last=False)
        block_hash = self._hash_of[block]
        if block_hash is not None:
            del self._block_of[block_hash]
            self._hash_of[block] = None
            for follower in self._followers:
                follower.forget(block_hash)
        self._ref_counts[block] = 1
        return block

    def release(self, block: int) -> None:
        """Give up one hold of a block; without any it is free."""
        self._ref_counts[block] -= 1
        if self._ref_counts[block] > 0:
            return
        self._free[block] = None
        if self._hash_of[block] is None:
            self._free.move_to_end(block, last=False)  # nothing in it to be found again: reuse it first

    def register(self, block: int, block_hash: bytes) -> None:
        """Make a block findable. The first block of a hash stays the known one."""
        if block_hash in self._block_of or self._hash_of[block] is not None:
            return
        self._hash_of[block] = block_hash
        self._block_of[block_hash] = block

    def forget(self, block_hash: bytes) -> None:
        """Make the block of this hash, if there is one, unfindable; if it is free it is the next to be handed out."""
        block = self._block_of.pop(block_hash, None)
        if block is None:
            return
        self._hash_of[block] = None
        if self._ref_counts[block] == 0:
            self._free.move_to_end(block, last=False)

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """Raise `AssertionError` unless the books match what tables hold. O(num_blocks)."""
        counts = [0] * self.num_blocks
        for blocks in held:
            assert len(set(blocks)) == len(blocks), "a block stands twice in one table"
            for block in blocks:
                counts[block] += 1
        assert counts == self._ref_counts, "reference counts differ from the tables"
        assert set(self._free) == {b for b, count in enumerate(counts) if count == 0}, "free list is wrong"
        known = {block: block_hash for block, block_hash in enumerate(self._hash_of) if block_hash is not None}
        assert {block: block_hash for block_hash, block in self._block_of.items()} == known, "hashes differ"
        for follower in self._followers:
            assert follower.hashes <= self.hashes, "a follower knows a hash that this pool has lost"
