"""The block manager once more, as its definition reads: no start indices, no reference counts, no shortcuts.

`Compared` lets it run beside the real one, and finds the first answer that differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from orcinus.engine.messages import CacheGroup
from orcinus.engine.scheduler.block_manager import BlockManager, CachedPrefix


@dataclass
class NaivePool:
    free: list[int]  # the next one to be handed out first
    hash_of: dict[int, bytes] = field(default_factory=dict)
    tables: dict[str, dict[int, int]] = field(default_factory=dict)  # index -> block, for each request

    def find(self, block_hash: bytes) -> int | None:
        return next((block for block, known in self.hash_of.items() if known == block_hash), None)

    def hold(self, request_id: str, index: int, block: int) -> None:
        if block in self.free:
            self.free.remove(block)
        self.tables[request_id][index] = block

    def let_go(self, request_id: str, index: int) -> None:
        block = self.tables[request_id].pop(index)
        if all(block not in table.values() for table in self.tables.values()):
            self.free.insert(len(self.free) if block in self.hash_of else 0, block)

    def swap(self, request_id: str, indices: list[int], blocks: dict[int, int]) -> None:
        """Let go of some, once those in their places are held."""
        old = self.tables[request_id]
        self.tables[request_id] = {index: block for index, block in old.items() if index not in indices}
        for index, block in blocks.items():
            self.hold(request_id, index, block)
        self.tables["old"] = {index: old[index] for index in indices}
        for index in indices:
            self.let_go("old", index)
        del self.tables["old"]

    def forget(self, block_hash: bytes) -> None:
        block = self.find(block_hash)
        if block is None:
            return
        del self.hash_of[block]
        if block in self.free:
            self.free.remove(block)
            self.free.insert(0, block)


class NaiveBlocks:
    def __init__(self, groups: Sequence[CacheGroup], block_size: int) -> None:
        self.block_size = block_size
        self.groups = list(groups)
        self.pools = [NaivePool([*range(group.num_blocks)]) for group in groups]
        self.sent: dict[str, list[int]] = {}
        self.length: dict[str, list[int]] = {}

    def blocks_for(self, num_tokens: int) -> int:
        return (num_tokens + self.block_size - 1) // self.block_size

    def is_behind(self, group: int, index: int, num_tokens: int) -> bool:
        """Whether no token at `num_tokens` or later sees a key of this block."""
        window = self.groups[group].window
        return window is not None and (index + 1) * self.block_size <= num_tokens - window + 1

    def needed(self, group: int, num_blocks: int) -> list[int]:
        return [i for i in range(num_blocks) if not self.is_behind(group, i, num_blocks * self.block_size)]

    def find_prefix(self, block_hashes: Sequence[bytes]) -> list[list[int]]:
        for num_blocks in range(len(block_hashes), 0, -1):
            found = [
                [pool.find(block_hashes[index]) for index in self.needed(group, num_blocks)]
                for group, pool in enumerate(self.pools)
            ]
            if all(block is not None for blocks in found for block in blocks):
                return [[block for block in blocks if block is not None] for blocks in found]
        return [[] for _ in self.pools]

    def allocate(self, request_id: str, num_tokens: int, prefix: list[list[int]]) -> list[int] | None:
        full = self.pools[0]
        there = self.length.get(request_id, [0])[0]
        num_fresh = self.blocks_for(num_tokens) - there - len(prefix[0])
        if num_fresh > sum(block not in prefix[0] for block in full.free):
            return None
        if request_id not in self.length:
            self.length[request_id] = [0] * len(self.pools)
            self.sent[request_id] = [0] * len(self.pools)
            for pool in self.pools:
                pool.tables[request_id] = {}
        if prefix[0]:
            self.start_with(request_id, prefix)
        return [*prefix[0], *(self.take(0, request_id) for _ in range(num_fresh))]

    def start_with(self, request_id: str, prefix: list[list[int]]) -> None:
        num_blocks = len(prefix[0])
        for group, (pool, blocks) in enumerate(zip(self.pools, prefix, strict=True)):
            for index, block in zip(range(num_blocks - len(blocks), num_blocks), blocks, strict=True):
                pool.hold(request_id, index, block)
            self.length[request_id][group] = num_blocks

    def extend_prefix(self, request_id: str, block_hashes: Sequence[bytes], start: int) -> int:
        prefix = self.find_prefix(block_hashes)
        num_blocks = len(prefix[0])
        if num_blocks <= start:
            return 0
        for index in range(start, num_blocks):
            self.pools[0].swap(request_id, [index], {index: prefix[0][index]})
        for group, pool in enumerate(self.pools[1:], 1):
            found = dict(zip(self.needed(group, num_blocks), prefix[group], strict=True))
            pool.swap(request_id, sorted(pool.tables[request_id]), found)
            self.length[request_id][group] = num_blocks
        return num_blocks - start

    def take(self, group: int, request_id: str) -> int:
        pool = self.pools[group]
        block = pool.free[0]
        block_hash = pool.hash_of.pop(block, None)
        pool.hold(request_id, self.length[request_id][group], block)
        self.length[request_id][group] += 1
        if group == 0 and block_hash is not None:
            for window_pool in self.pools[1:]:
                window_pool.forget(block_hash)
        return block

    def advance(self, request_id: str, end: int) -> list[list[int]]:
        unsent = []
        for group, pool in enumerate(self.pools):
            while self.length[request_id][group] < self.blocks_for(end):
                self.take(group, request_id)
            table, length = pool.tables[request_id], self.length[request_id][group]
            unsent.append([table.get(index, 0) for index in range(self.sent[request_id][group], length)])
            self.sent[request_id][group] = length
        return unsent

    def register(self, request_id: str, index: int, block_hash: bytes) -> None:
        for pool in self.pools:
            block = pool.tables[request_id].get(index)
            if block is not None and block not in pool.hash_of and pool.find(block_hash) is None:
                pool.hash_of[block] = block_hash

    def release_behind(self, request_id: str, num_tokens: int) -> None:
        for group, pool in enumerate(self.pools):
            for index in sorted(pool.tables[request_id]):
                if self.is_behind(group, index, num_tokens):
                    pool.let_go(request_id, index)

    def free(self, request_id: str) -> None:
        for pool in self.pools:
            for index in sorted(pool.tables.get(request_id, {}), reverse=True):
                pool.let_go(request_id, index)
            pool.tables.pop(request_id, None)
        self.sent.pop(request_id, None)
        self.length.pop(request_id, None)


class Compared:
    """A block manager whose every answer is that of `NaiveBlocks`."""

    def __init__(self, groups: Sequence[CacheGroup], block_size: int) -> None:
        self.real = BlockManager(groups, block_size)
        self.naive = NaiveBlocks(groups, block_size)

    def find_prefix(self, block_hashes: Sequence[bytes]) -> CachedPrefix:
        prefix = self.real.find_prefix(block_hashes)
        assert _by_group(prefix, len(self.naive.pools)) == self.naive.find_prefix(block_hashes)
        return prefix

    def allocate(self, request_id: str, num_tokens: int, prefix: CachedPrefix) -> list[int] | None:
        added = self.real.allocate(request_id, num_tokens, prefix)
        assert added == self.naive.allocate(request_id, num_tokens, _by_group(prefix, len(self.naive.pools)))
        return added

    def extend_prefix(self, request_id: str, block_hashes: Sequence[bytes], start: int) -> int:
        num_found = self.real.extend_prefix(request_id, block_hashes, start)
        assert num_found == self.naive.extend_prefix(request_id, block_hashes, start)
        return num_found

    def advance(self, request_id: str, end: int) -> list[list[int]]:
        ids = self.real.advance(request_id, end)
        assert ids == self.naive.advance(request_id, end)
        return ids

    def register(self, request_id: str, index: int, block_hash: bytes) -> None:
        self.real.register(request_id, index, block_hash)
        self.naive.register(request_id, index, block_hash)

    def release_behind(self, request_id: str, num_tokens: int) -> None:
        self.real.release_behind(request_id, num_tokens)
        self.naive.release_behind(request_id, num_tokens)

    def free(self, request_id: str) -> None:
        self.real.free(request_id)
        self.naive.free(request_id)

    def check_integrity(self) -> None:
        self.real.check_integrity()
        assert self.real.num_free_blocks == len(self.naive.pools[0].free)
        for group, pool in enumerate(self.naive.pools):
            for request_id, table in pool.tables.items():
                blocks = self.real.block_table(request_id, group)
                assert blocks == [table.get(index, 0) for index in range(self.naive.length[request_id][group])]


def _by_group(prefix: CachedPrefix, num_groups: int) -> list[list[int]]:
    return [list(blocks) for blocks in (prefix.full, *prefix.windows)] + [[]] * (num_groups - 1 - len(prefix.windows))
