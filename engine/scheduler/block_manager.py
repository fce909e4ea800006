"""Which KV block belongs to whom: block tables, reference counts, the free list and the prefix cache.

Paged attention after Kwon et al. (https://arxiv.org/abs/2309.06180); full blocks are shared between requests
by a hash of all tokens up to their end. Deals in ids and hashes only: knows nothing of requests' contents,
tensors or scheduling policy.
"""

from collections import OrderedDict
from collections.abc import Sequence


class BlockManager:
    """Hands out blocks `0 .. num_blocks - 1` of `block_size` tokens.

    A block is free (reference count 0) or held by one or more tables. A free block keeps its contents and its
    hash until it is handed out again, least recently freed first, so it can still be found by its hash.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._ref_counts = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._tables: dict[str, list[int]] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - len(self._free)

    def block_table(self, request_id: str) -> Sequence[int]:
        """The blocks of a request in order; empty if it has none."""
        return self._tables.get(request_id, ())

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find_prefix(self, block_hashes: Sequence[bytes]) -> list[int]:
        """The cached blocks of the longest known prefix."""
        blocks = []
        for block_hash in block_hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def allocate(self, request_id: str, num_tokens: int, prefix: Sequence[int] = ()) -> list[int] | None:
        """Grow a request's table until it covers `num_tokens`; a new table starts with the blocks of `prefix`.

        Returns the ids appended (the prefix among them), or None, with nothing changed, if too few are free.
        """
        table = self._tables.get(request_id)
        assert not (table and prefix), "only a new table can start with a cached prefix"
        num_fresh = self.blocks_for(num_tokens) - len(table or ()) - len(prefix)
        if num_fresh > self.num_free_excluding(prefix):
            return None
        if table is None:
            table = self._tables[request_id] = []
        for block in prefix:
            self._take(block)
        added = [*prefix, *(self._take_oldest_free() for _ in range(num_fresh))]
        table.extend(added)
        return added

    def num_free_excluding(self, prefix: Sequence[int]) -> int:
        """Free blocks that would be left once those of `prefix` are taken."""
        return len(self._free) - sum(1 for block in prefix if self._ref_counts[block] == 0)

    def extend_prefix(self, request_id: str, block_hashes: Sequence[bytes], start: int) -> int:
        """Swap blocks of a table, from index `start` on, for cached ones with the same contents to be.

        For a table that nothing has been written to beyond `start`. Returns how many blocks were found.
        """
        table = self._tables[request_id]
        found = self.find_prefix(block_hashes[start:])
        for index, block in enumerate(found, start):
            self._take(block)
            self._release(table[index])
            table[index] = block
        return len(found)

    def register(self, request_id: str, index: int, block_hash: bytes) -> None:
        """Make a block findable. It must be full and computed. The first block of that hash stays the known one."""
        block = self._tables[request_id][index]
        if block_hash in self._block_of or self._hash_of[block] is not None:
            return
        self._hash_of[block] = block_hash
        self._block_of[block_hash] = block

    def free(self, request_id: str) -> None:
        """Give a request's blocks back, the last first, so that the start of a prefix is kept the longest."""
        for block in reversed(self._tables.pop(request_id, [])):
            self._release(block)

    def _take(self, block: int) -> None:
        if self._ref_counts[block] == 0:
            del self._free[block]
        self._ref_counts[block] += 1

    def _take_oldest_free(self) -> int:
        block, _ = self._free.popitem(last=False)
        block_hash = self._hash_of[block]
        if block_hash is not None:
            del self._block_of[block_hash]
            self._hash_of[block] = None
        self._ref_counts[block] = 1
        return block

    def _release(self, block: int) -> None:
        self._ref_counts[block] -= 1
        if self._ref_counts[block] > 0:
            return
        self._free[block] = None
        if self._hash_of[block] is None:
            self._free.move_to_end(block, last=False)  # nothing in it to be found again: reuse it first

    def check_integrity(self) -> None:
        """Raise `AssertionError` where the books do not balance. For tests and idle moments; O(num_blocks)."""
        held = [0] * self.num_blocks
        for table in self._tables.values():
            assert len(set(table)) == len(table), "a block stands twice in one table"
            for block in table:
                held[block] += 1
        assert held == self._ref_counts, "reference counts differ from the tables"
        assert set(self._free) == {b for b, count in enumerate(held) if count == 0}, "free list is wrong"
        known = {block: block_hash for block, block_hash in enumerate(self._hash_of) if block_hash is not None}
        assert {block: block_hash for block_hash, block in self._block_of.items()} == known, "hashes differ"
