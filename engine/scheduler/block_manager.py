"""Which KV block belongs to whom: the block tables of requests, in each cache group, and the prefix cache.

Paged attention after Kwon et al. (https://arxiv.org/abs/2309.06180); full blocks are shared between requests
by a hash of all tokens up to their end. Deals in ids and hashes only: knows nothing of requests' contents,
tensors or scheduling policy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from orcinus.engine.messages import CacheGroup
from orcinus.engine.scheduler.block_pool import BlockPool, HashFollower
from orcinus.engine.scheduler.cache_groups import blocks_behind


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """Cached blocks for the first `len(prefix)` blocks of a request.

    `full` are all of them in the full group; `windows` has, for each group with a window, the last few: those that hold
    keys which the token after the prefix sees.
    """

    full: Sequence[int] = ()
    windows: Sequence[Sequence[int]] = ()

    def __len__(self) -> int:
        return len(self.full)


_NO_PREFIX = CachedPrefix()


@dataclass(slots=True)
class _Table:
    """A request's blocks in one group: entry i is of tokens `i * block_size` to `(i + 1) * block_size`.

    Entries before `start` lie behind the window: the request does not hold them, and 0 stands there for any block.
    """

    blocks: list[int] = field(default_factory=list)
    start: int = 0
    num_sent: int = 0  # entries that `advance` has returned

    @property
    def held(self) -> list[int]:
        return self.blocks[self.start :]

    def take_unsent(self) -> list[int]:
        unsent, self.num_sent = self.blocks[self.num_sent :], len(self.blocks)
        return unsent


@dataclass(frozen=True, slots=True)
class _Window:
    """A group whose queries see `size` keys, themselves included. `num_behind`: see `blocks_behind`."""

    pool: BlockPool
    size: int
    num_behind: int

    def longest_hit(self, block_hashes: Sequence[bytes], num_blocks: int) -> int:
        """Return the most blocks, at most `num_blocks`, after which all that the next token sees is cached."""
        index = end = num_blocks
        while index > max(0, end - self.num_behind):
            index -= 1
            if self.pool.find(block_hashes[index]) is None:
                end = index
        return end

    def cached(self, block_hashes: Sequence[bytes], num_blocks: int) -> list[int]:
        """Return what a hit of so many blocks needs."""
        needed = block_hashes[max(0, num_blocks - self.num_behind) : num_blocks]
        found = [self.pool.find(block_hash) for block_hash in needed]
        return [block for block in found if block is not None]

    def start_with(self, table: _Table, blocks: Sequence[int], num_blocks: int) -> None:
        """Make a prefix of `num_blocks`, of which `blocks` are the last, all that a table has."""
        assert table.num_sent == 0, "the executor knows the table already"
        for block in blocks:
            self.pool.take(block)
        for block in table.held:
            self.pool.release(block)
        table.start = num_blocks - len(blocks)
        table.blocks = [0] * table.start + list(blocks)

    def extend(self, table: _Table, num_blocks: int) -> None:
        for _ in range(num_blocks - len(table.blocks)):
            table.blocks.append(self.pool.take_oldest_free())

    def release(self, table: _Table, end: int) -> None:
        """Give up the blocks before entry `end`."""
        for index in range(table.start, end):
            self.pool.release(table.blocks[index])
            table.blocks[index] = 0
        table.start = max(table.start, end)


class BlockManager:
    """Hands out the blocks of several pools, of `block_size` tokens each: a pool for each group of layers.

    The first group keeps everything and decides who may run: the properties tell of its blocks, and `allocate` refuses
    where it has too few. A group with a window holds the blocks that overlap the last `window - 1` of the tokens known
    to be computed, and what is taken for those after them. Its pool has to be as large as `cache_groups` says.

    `allocate` gives a request its place. `advance` comes before each step that reaches a new block, and after each
    step that fills one come `register` and `release_behind`. `followers` forget each hash that the first group forgets.
    """

    def __init__(self, groups: Sequence[CacheGroup], block_size: int, followers: Sequence[HashFollower] = ()) -> None:
        assert groups[0].window is None, "the first group keeps everything"
        self.num_blocks = groups[0].num_blocks
        self.block_size = block_size
        self._windows: list[_Window] = []
        for group in groups[1:]:
            assert group.window is not None, "there is one group that keeps everything"
            num_behind = blocks_behind(group.window, block_size)
            self._windows.append(_Window(BlockPool(group.num_blocks), group.window, num_behind))
        self._full = BlockPool(self.num_blocks, [*(window.pool for window in self._windows), *followers])
        self._tables: dict[str, list[_Table]] = {}

    @property
    def has_windows(self) -> bool:
        return bool(self._windows)

    @property
    def num_free_blocks(self) -> int:
        return self._full.num_free_blocks

    @property
    def num_used_blocks(self) -> int:
        return self._full.num_used_blocks

    def block_table(self, request_id: str, group: int = 0) -> Sequence[int]:
        """Return the blocks of a request in order, 0 where they lie behind the group's window; empty if it has none."""
        tables = self._tables.get(request_id)
        return () if tables is None else tables[group].blocks

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find_prefix(self, block_hashes: Sequence[bytes]) -> CachedPrefix:
        """Return the cached blocks of the longest prefix that every group knows as far as it needs it."""
        return self._find_prefix(block_hashes, 0)

    def num_known(self, block_hashes: Sequence[bytes], start: int) -> int:
        """Return how many blocks the first group knows in a row, from index `start` on."""
        return len(self._full.find_first(block_hashes[start:]))

    def num_cached(self, block_hashes: Sequence[bytes], start: int) -> int:
        """Return the length of the longest cached prefix of which the first `start` blocks are held."""
        return start + len(self._find_prefix(block_hashes, start))

    def _find_prefix(self, block_hashes: Sequence[bytes], start: int) -> CachedPrefix:
        """Find the longest prefix of which the first `start` blocks are held; these are left out of `full`."""
        blocks = self._full.find_first(block_hashes[start:] if start else block_hashes)
        if not self._windows:
            return CachedPrefix(blocks)
        end = self._longest_hit(block_hashes, start + len(blocks))
        return CachedPrefix(
            blocks[: max(0, end - start)], [window.cached(block_hashes, end) for window in self._windows]
        )

    def _longest_hit(self, block_hashes: Sequence[bytes], num_blocks: int) -> int:
        """Return the most blocks, at most `num_blocks`, of which every window has what it needs."""
        while True:
            end = min(window.longest_hit(block_hashes, num_blocks) for window in self._windows)
            if end == num_blocks:
                return end
            num_blocks = end

    def allocate(self, request_id: str, num_tokens: int, prefix: CachedPrefix = _NO_PREFIX) -> list[int] | None:
        """Grow a request's full table until it covers `num_tokens`; a new one starts with the blocks of `prefix`.

        Returns the ids appended (the prefix among them), or None, with nothing changed, if too few are free.
        """
        tables = self._tables.get(request_id)
        assert tables is None or not prefix.full, "only a new table can start with a cached prefix"
        num_there = len(prefix.full) if tables is None else len(tables[0].blocks)
        num_fresh = self.blocks_for(num_tokens) - num_there
        if num_fresh > self._full.num_free_excluding(prefix.full):
            return None
        if tables is None:
            tables = self._tables[request_id] = self._new_tables(prefix)
        for block in prefix.full:
            self._full.take(block)
        added = [*prefix.full, *(self._full.take_oldest_free() for _ in range(num_fresh))]
        tables[0].blocks.extend(added)
        return added

    def _new_tables(self, prefix: CachedPrefix) -> list[_Table]:
        """Return tables of which those with a window start with a prefix, and the full one is empty."""
        tables = [_Table() for _ in range(1 + len(self._windows))]
        if prefix:
            for (window, table), blocks in zip(self._windowed(tables), prefix.windows, strict=True):
                window.start_with(table, blocks, len(prefix))
        return tables

    def _windowed(self, tables: Sequence[_Table]) -> Iterator[tuple[_Window, _Table]]:
        return zip(self._windows, tables[1:], strict=True)

    def num_free_excluding(self, prefix: CachedPrefix) -> int:
        """Return how many free blocks would be left once those of `prefix` are taken."""
        return self._full.num_free_excluding(prefix.full)

    def extend_prefix(self, request_id: str, block_hashes: Sequence[bytes], start: int) -> int:
        """Swap blocks of a table, from index `start` on, for cached ones with the same contents to be.

        For a table that nothing has been written to beyond `start`, before its first `advance`. Returns how many blocks
        were found.
        """
        tables = self._tables[request_id]
        found = self._find_prefix(block_hashes, start)
        if not found:
            return 0
        full = tables[0].blocks
        for index, block in enumerate(found.full, start):
            self._full.take(block)
            self._full.release(full[index])
            full[index] = block
        for (window, table), blocks in zip(self._windowed(tables), found.windows, strict=True):
            window.start_with(table, blocks, start + len(found))
        return len(found)

    def advance(self, request_id: str, end: int) -> list[list[int]]:
        """Take what the windows lack for a step that computes tokens up to position `end`.

        Returns, for each group, the ids appended to the request's table since the last call. `allocate` has covered
        `end`. It may lie before that of an earlier step, whose last tokens were rejected: their blocks stay.
        """
        tables = self._tables[request_id]
        num_blocks = self.blocks_for(end)
        assert num_blocks <= len(tables[0].blocks), "the full group has no blocks for these tokens yet"
        for window, table in self._windowed(tables):
            window.extend(table, num_blocks)
        return [table.take_unsent() for table in tables]

    def register(self, request_id: str, index: int, block_hash: bytes) -> None:
        """Make the blocks of an index findable, which must be full, computed and not behind a window yet.

        In each group the first block of that hash stays the known one.
        """
        tables = self._tables[request_id]
        self._full.register(tables[0].blocks[index], block_hash)
        for window, table in self._windowed(tables):
            assert index >= table.start, "a block is registered before it is let go of"
            window.pool.register(table.blocks[index], block_hash)

    def release_behind(self, request_id: str, num_tokens: int) -> None:
        """Free what no token at position `num_tokens` or later can see.

        `num_tokens` are computed for certain and none of them is computed again: not those of a step in flight, and not
        draft tokens that may be rejected. What was freed can be found by its hash until it is handed out again. After
        each step that fills a block is often enough for the bound of `cache_groups`.
        """
        for window, table in self._windowed(self._tables[request_id]):
            window.release(table, max(0, num_tokens - window.size + 1) // self.block_size)

    def free(self, request_id: str) -> None:
        """Give a request's blocks back, the last first, so that the start of a prefix is kept the longest."""
        tables = self._tables.pop(request_id, None)
        if tables is None:
            return
        for block in reversed(tables[0].blocks):
            self._full.release(block)
        for window, table in self._windowed(tables):
            for block in reversed(table.held):
                window.pool.release(block)

    def check_integrity(self) -> None:
        """Raise `AssertionError` where the books do not balance. For tests and idle moments; O(num_blocks)."""
        self._full.check_integrity([tables[0].blocks for tables in self._tables.values()])
        for group, window in enumerate(self._windows, 1):
            both = [(tables[0], tables[group]) for tables in self._tables.values()]
            window.pool.check_integrity([table.held for _, table in both])
            of_full: dict[int, int] = {}
            for full, table in both:
                assert not any(table.blocks[: table.start]), "a block behind the window"
                assert len(table.blocks) <= len(full.blocks), "a window is ahead of the full group"
                for index in range(table.start, len(table.blocks)):
                    known = of_full.setdefault(full.blocks[index], table.blocks[index])
                    assert known == table.blocks[index], "two blocks of a window for one of the full group"
