"""What the model runner keeps of its requests as arrays, a row for each: tokens, block table and counts.

A step reads and changes the rows of all its requests with a few numpy operations, however many there are. Knows nothing
of sampling, plans or devices.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orcinus.engine.attention.step_layout import StepLayout

_FIRST_ROWS = 32
_FIRST_TOKENS = 256
_FIRST_BLOCKS = 16


class BlockTables:
    """Holds a block table for each row, in one cache group. Behind a row's own blocks come zeros."""

    def __init__(self, num_rows: int) -> None:
        self.num_blocks = np.zeros(num_rows, dtype=np.int64)
        self._tables = np.zeros((num_rows, _FIRST_BLOCKS), dtype=np.int32)

    def blocks(self, row: int) -> NDArray[np.int32]:
        return self._tables[row, : self.num_blocks[row]]

    def extend(self, row: int, block_ids: Sequence[int]) -> None:
        first = int(self.num_blocks[row])
        end = first + len(block_ids)
        if end > self._tables.shape[1]:
            self._tables = _widened(self._tables, end)
        self._tables[row, first:end] = block_ids
        self.num_blocks[row] = end

    def clear(self, row: int) -> None:
        self._tables[row, : self.num_blocks[row]] = 0
        self.num_blocks[row] = 0

    def of_rows(self, rows: NDArray[np.int64], max_blocks: int) -> NDArray[np.int32]:
        """Return the tables of these rows, (num_rows, max_blocks)."""
        return self._tables[:, :max_blocks][rows]

    def named_by(self, rows: NDArray[np.bool_], block_ids: Sequence[int]) -> set[int]:
        """Return those of the blocks that stand in the table of any of these rows, or stood there once."""
        ids = np.array(block_ids, dtype=np.int32)
        return set(ids[np.isin(ids, self._tables[rows])].tolist())

    def add_rows(self) -> None:
        self.num_blocks, self._tables = _doubled(self.num_blocks), _doubled(self._tables)


class RequestRows:
    """Used by one thread. Arrays grow by doubling; a row that was removed is the next one to be used.

    `block_tables` are those of each cache group. `is_broken` says who computed what is no finite number, and
    `num_steps_under_way` in how many steps a row takes part whose results are not known, or never will be.
    """

    def __init__(self, block_size: int, num_rows: int = _FIRST_ROWS, num_groups: int = 1) -> None:
        self.block_size = block_size
        self.num_tokens = np.zeros(num_rows, dtype=np.int64)
        self.is_broken = np.zeros(num_rows, dtype=np.bool_)
        self.num_steps_under_way = np.zeros(num_rows, dtype=np.int64)
        self.block_tables = [BlockTables(num_rows) for _ in range(num_groups)]
        self._tokens = np.zeros((num_rows, _FIRST_TOKENS), dtype=np.int32)
        self._free = list(range(num_rows - 1, -1, -1))

    def add(self, token_ids: Sequence[int]) -> int:
        """Take a row for a request with these tokens and no blocks."""
        if not self._free:
            self._add_rows()
        row = self._free.pop()
        self.reserve_tokens(len(token_ids))
        self._tokens[row, : len(token_ids)] = token_ids
        self.num_tokens[row] = len(token_ids)
        return row

    def remove(self, row: int) -> None:
        for tables in self.block_tables:
            tables.clear(row)
        self.is_broken[row] = False
        self.num_steps_under_way[row] = 0
        self._free.append(row)

    def append(self, rows: NDArray[np.int64], token_ids: Sequence[int]) -> None:
        """Append one token to each of `rows`, which are all different."""
        ends = self.num_tokens[rows]
        self.reserve_tokens(int(ends.max(initial=0)) + 1)
        self._tokens[rows, ends] = token_ids
        self.num_tokens[rows] = ends + 1

    def extend(self, rows: NDArray[np.int64], token_ids: Sequence[Sequence[int]]) -> None:
        """Append any number of tokens to each of `rows`, which are all different."""
        for row, new in zip(rows.tolist(), token_ids, strict=True):
            first = int(self.num_tokens[row])
            self.reserve_tokens(first + len(new))
            self._tokens[row, first : first + len(new)] = new
            self.num_tokens[row] = first + len(new)

    def known_tokens(self, row: int) -> NDArray[np.int32]:
        """Return all tokens of a row: a view, valid until tokens are appended to any row."""
        return self._tokens[row, : self.num_tokens[row]]

    def tokens(self, rows: NDArray[np.int64] | int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the token of each row at each position."""
        tokens: NDArray[np.int32] = self._tokens[rows, positions]
        return tokens.astype(np.int64)

    def tokens_or_rows(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the same, where a position may be the one after a row's last token: that gives -1 - row."""
        self.reserve_tokens(int(positions.max()) + 1)
        return np.where(positions < self.num_tokens[rows], self.tokens(rows, positions), -1 - rows)

    def next_tokens(self, rows: NDArray[np.int64], layout: StepLayout) -> NDArray[np.int64]:
        """Return the token behind each one of a step of `rows`: where it is not known, some token of the vocabulary."""
        self.reserve_tokens(int(layout.seq_lens.max()) + 1)
        return self.tokens(rows[layout.sequences], layout.positions + 1)

    def tables(self, rows: NDArray[np.int64], longest: int) -> list[NDArray[np.int32]]:
        """Return (num_rows, max_blocks) of each cache group, as wide as it takes for `longest` tokens."""
        max_blocks = -(-longest // self.block_size)
        return [tables.of_rows(rows, max_blocks) for tables in self.block_tables]

    def _add_rows(self) -> None:
        count = len(self.num_tokens)
        for name in ("num_tokens", "is_broken", "num_steps_under_way", "_tokens"):
            setattr(self, name, _doubled(getattr(self, name)))
        for tables in self.block_tables:
            tables.add_rows()
        self._free = list(range(2 * count - 1, count - 1, -1))

    def reserve_tokens(self, count: int) -> None:
        """Make room for positions up to `count`: what `tokens` gives beyond a row's own means nothing."""
        if count > self._tokens.shape[1]:
            self._tokens = _widened(self._tokens, count)


def _widened(rows: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """Return the same rows with room for `width` columns or more, zeros behind what was there."""
    widened = np.zeros((rows.shape[0], max(width, 2 * rows.shape[1])), dtype=np.int32)
    widened[:, : rows.shape[1]] = rows
    return widened


def _doubled(rows: NDArray[Any]) -> NDArray[Any]:
    """Return twice as many rows, the new ones zeros."""
    return np.concatenate([rows, np.zeros_like(rows)])
