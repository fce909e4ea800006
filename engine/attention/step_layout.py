"""Where a step's tokens lie: in the flat batch, in their sequences and in the paged cache. Arrays of the host.

Knows neither requests nor devices: it is told which positions of which block tables a step computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Holds the flat tokens of one step: sequence i has tokens `query_start[i]` to `query_start[i + 1]`.

    The first `num_decodes` sequences have one token each, which attention computes as it does a decode, whether it is
    one or the token of a prompt; a request that decodes with drafts is among the others. `seq_lens` counts the tokens
    of a sequence that are in the cache once this step has written its own. Slot s is row `s % block_size` of block
    `s // block_size`. Each cache group has slots and a block table of its own.
    """

    positions: NDArray[np.int64]  # (num_tokens,), each in its own sequence
    sequences: NDArray[np.int64]  # (num_tokens,), whose token it is
    slots: tuple[NDArray[np.int64], ...]  # (num_tokens,) each
    block_tables: tuple[NDArray[np.int32], ...]  # (num_seqs, max_blocks) each
    query_start: NDArray[np.int32]  # (num_seqs + 1,)
    seq_lens: NDArray[np.int32]  # (num_seqs,)
    num_decodes: int
    block_size: int

    @property
    def cache_arrays(self) -> tuple[NDArray[Any], ...]:
        """Return what kernels read."""
        return self.query_start, self.seq_lens, *self.slots, *self.block_tables

    @property
    def is_decode(self) -> bool:
        """Return whether every sequence has one token."""
        return self.num_decodes == len(self.seq_lens)


def lay_out(
    firsts: NDArray[np.int64], ends: NDArray[np.int64], tables: Sequence[NDArray[np.int32]], block_size: int
) -> StepLayout:
    """Lay out the step in which sequence i computes positions `firsts[i]` to `ends[i]`.

    `tables` of each cache group (num_seqs, max_blocks) hold a block id for each block that a sequence writes or reads
    there. Single tokens come first.
    """
    lengths = ends - firsts
    num_decodes = int((lengths == 1).sum())
    query_start = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=query_start[1:])
    sequences, positions = np.arange(len(lengths)), firsts
    if num_decodes < len(lengths):
        sequences = np.repeat(sequences, lengths)
        positions = np.arange(len(sequences)) - (query_start[:-1] - firsts)[sequences]
    blocks, rows = np.divmod(positions, block_size)
    return StepLayout(
        positions=positions,
        sequences=sequences,
        slots=tuple([table[sequences, blocks].astype(np.int64) * block_size + rows for table in tables]),
        block_tables=tuple(tables),
        query_start=query_start.astype(np.int32),
        seq_lens=ends.astype(np.int32),
        num_decodes=num_decodes,
        block_size=block_size,
    )
