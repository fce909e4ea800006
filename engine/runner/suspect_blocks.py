"""Blocks of the KV cache that may hold what is no finite number, and are made finite before another request reads them.

Attention gives what a sequence does not see a weight of 0, which does not silence it: 0 * NaN is NaN. A backend that
does not read such rows at all (`reads_foreign_rows`) needs nothing of this. Knows nothing of tokens and of the model.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.messages import ScheduledRequest
from orcinus.engine.platform.device_copy import to_device, to_host
from orcinus.engine.runner.request_rows import RequestRows
from orcinus.engine.runner.step_batch import RunningRequest, StepBatch


class SuspectBlocks:
    """Watches the requests of `rows` step by step: `begin` and `end`, `note` and `watch`, `release`. One thread.

    A request is suspected of having left such numbers in its blocks once some were seen that it computed, and while a
    step with it is under way: it stays so if the step fails.
    """

    def __init__(self, rows: RequestRows, attention: PagedAttention, device: torch.device) -> None:
        self._rows = rows
        self._attention = attention
        self._device = device
        self._is_needed = attention.reads_foreign_rows
        self._blocks: list[set[int]] = [set() for _ in rows.block_tables]

    def begin(self, rows: NDArray[np.int64]) -> None:
        """Note that a step with these rows is launched."""
        if self._is_needed:
            self._rows.num_steps_under_way[rows] += 1

    def end(self, requests: Sequence[RunningRequest]) -> None:
        """Note that a step's result is there; a request may have been released meanwhile, and its row reused."""
        if self._is_needed:
            here = [request.index for request in requests if not request.is_released]
            self._rows.num_steps_under_way[here] -= 1

    def note(self, rows: NDArray[np.int64], is_finite: NDArray[np.bool_]) -> None:
        """Take in whether what was computed for each of these rows is finite."""
        if self._is_needed:
            self._rows.is_broken[rows] |= ~is_finite

    def watch(self, batch: StepBatch, hidden: Tensor) -> Callable[[], None]:
        """Look at a step's hidden states (num_tokens, hidden_size); return what waits for the answer and notes it.

        They tell of keys and values: each token attends to its own. Drafts are left out, as they may be anything.
        """
        watched = [i for i, item in enumerate(batch.scheduled) if not item.draft_token_ids]
        if not self._is_needed or not watched:
            return lambda: None
        look = to_host(torch.isfinite(hidden).all(dim=-1))

        def take_in() -> None:
            (is_finite,) = look()
            of_requests = np.logical_and.reduceat(np.array(is_finite, dtype=np.bool_), batch.layout.query_start[:-1])
            here = [i for i in watched if not batch.requests[i].is_released]
            self.note(batch.rows[here], of_requests[here])

        return take_in

    def release(self, row: int) -> None:
        """Remember the blocks of a row that is given up, if it is suspected."""
        if self._is_needed and (self._rows.is_broken[row] or self._rows.num_steps_under_way[row]):
            for suspects, tables in zip(self._blocks, self._rows.block_tables, strict=True):
                suspects.update(tables.blocks(row).tolist())

    def clean_new(self, row: int, item: ScheduledRequest, group: int) -> None:
        """Make those blocks finite that a request is about to fill, and that may not be.

        Not sooner: one with the same prompt may find them by its prefix, and has to break in the same way.
        """
        suspects = self._blocks[group]
        if not self._is_needed or (group == 0 and not suspects):
            return
        num_blocks = int(self._rows.block_tables[group].num_blocks[row])
        num_found = max(0, item.num_computed_tokens // self._rows.block_size - num_blocks)
        fresh = item.new_block_ids[group][num_found:]
        stale = suspects.intersection(fresh)
        if group > 0:
            stale |= self._passed_on(row, group, fresh)
        if stale:
            self._scrub(np.array(sorted(stale), dtype=np.int64), group)
            suspects -= stale

    def clean_rejected(self, row: int, first: int, end: int) -> None:
        """Make finite what rejected drafts have left in a row's cache at positions `first` to `end`.

        It will be overwritten, and is read until then.
        """
        if not self._is_needed:
            return
        first_block, last_block = first // self._rows.block_size, (end - 1) // self._rows.block_size
        for group, tables in enumerate(self._rows.block_tables):
            self._scrub(tables.blocks(row)[first_block : last_block + 1].astype(np.int64), group)

    def _passed_on(self, row: int, group: int, block_ids: list[int]) -> set[int]:
        """Return those of the blocks that left the window of another request which computes what is no finite number.

        A step under way is no reason: what left the window is known to be computed.
        """
        others = self._rows.is_broken.copy()
        others[row] = False
        return self._rows.block_tables[group].named_by(others, block_ids) if others.any() else set()

    @torch.inference_mode()
    def _scrub(self, block_ids: NDArray[np.int64], group: int) -> None:
        (ids,) = to_device([block_ids], self._device)
        self._attention.scrub(ids, group)
