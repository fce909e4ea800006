"""Where the sequences of a step lie in its flat row of tokens, and where their states are. Knows no layer."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.attention.step_context import DraftSlots, StepContext
from orcinus.engine.platform.device_copy import to_device


@dataclass(frozen=True)
class Segments:
    """Describes the sequences of one step, each a stretch of the step's tokens; those of one token come first.

    `starts` (num_seqs + 1,) int32, `slots` (num_seqs,) int64 and `is_new` (num_seqs,) bool are on the model's device.
    A new sequence is at its position 0, where its slot holds what another one left.

    Drafts are a sequence of their own, right behind the one whose they are: it goes on from the state which that one
    ends with, and its own end is kept in slot -1 - `slots[i]`. So the state in front of drafts is there if they are
    rejected. `owners` (num_seqs,) int64 counts a sequence and its drafts as one, `begins` (num_owners,) int64 has where
    each begins; None: there are no drafts.
    """

    query_start: list[int]
    num_singles: int
    starts: Tensor
    slots: Tensor
    is_new: Tensor
    owners: Tensor | None = None
    begins: Tensor | None = None
    drafts: frozenset[int] = frozenset()  # the sequences that are drafts

    @staticmethod
    def of(step: StepContext) -> "Segments":
        """Return those of a step that has state slots; the same object as long as the step is."""
        global _last  # noqa: PLW0603 (every recurrent layer of a step asks)
        last = _last
        if last is None or last[0] is not step:
            last = _last = step, _segments_of(step)
        return last[1]

    @property
    def longer(self) -> range:
        """The sequences behind those of one token, each of any number of tokens."""
        return range(self.num_singles, len(self.query_start) - 1)

    @cached_property
    def kept_in(self) -> Tensor:
        """The slots (num_seqs,) in which the sequences' ends are kept."""
        return self.slots if not self.drafts else torch.where(self.slots < 0, -1 - self.slots, self.slots)

    @cached_property
    def _with_history(self) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        return {}

    def of_owners(self, rows: Tensor) -> Tensor:
        """Return the rows, of which there is one for each sequence, without those of drafts."""
        return rows if self.begins is None else rows[self.begins]

    def with_history(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return how rows of inputs with `width` earlier ones before each sequence are put together, as indices.

        Of (num_owners * width earlier rows, then num_tokens new ones): the rows in their order (num_owners * width +
        num_tokens,), the places of the new ones in that order (num_tokens,), and those of the last `width` of each
        sequence (num_seqs, width). Drafts have no earlier rows but those of whose they are.
        """
        if width not in self._with_history:
            self._with_history[width] = self._history_indices(width)
        return self._with_history[width]

    def _history_indices(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        device, num_seqs = self.slots.device, len(self.query_start) - 1
        owners = torch.arange(num_seqs, device=device) if self.owners is None else self.owners
        num_earlier = width * (num_seqs - len(self.drafts))
        before = width * (owners + 1)  # earlier rows up to and with each sequence's
        num_tokens = self.query_start[-1]
        if self.num_singles == num_seqs:
            sequence = torch.arange(num_seqs, device=device)
        else:
            counts = self.starts.diff()
            sequence = torch.repeat_interleave(counts, output_size=num_tokens)
        places = torch.arange(num_tokens, device=device) + before[sequence]
        taps = torch.arange(width, device=device)
        ends = (self.starts[1:].long() + before).unsqueeze(1)
        order = torch.empty(num_earlier + num_tokens, dtype=torch.int64, device=device)
        order[places] = torch.arange(num_earlier, num_earlier + num_tokens, device=device)
        firsts = self.of_owners(self.starts[:-1].long() + before - width).unsqueeze(1)
        order[(firsts + taps).flatten()] = torch.arange(num_earlier, device=device)
        return order, places, ends - width + taps


_last: tuple[StepContext, Segments] | None = None


def _segments_of(step: StepContext) -> Segments:
    meta = step.metadata[0]
    assert step.state_slots is not None
    num_new = meta.query_start_tensor.diff()
    whole = Segments(
        query_start=meta.query_start,
        num_singles=meta.num_decodes,
        starts=meta.query_start_tensor,
        slots=step.state_slots,
        is_new=meta.seq_lens_tensor == num_new,
    )
    return whole if step.draft_slots is None else _cut_before_drafts(whole, step.draft_slots)


def _cut_before_drafts(whole: Segments, drafts: DraftSlots) -> Segments:
    query_start, owners, are_drafts = [0], list[int](), list[bool]()
    for owner, ((_, end), count) in enumerate(zip(pairwise(whole.query_start), drafts.counts, strict=True)):
        cuts = [end - count, end] if count else [end]
        query_start += cuts
        owners += [owner] * len(cuts)
        are_drafts += [False, True][: len(cuts)]
    mask = np.array(are_drafts)
    arrays: list[NDArray[Any]] = [
        np.array(query_start, dtype=np.int32),
        np.array(owners, dtype=np.int64),
        np.flatnonzero(~mask),
        mask,
    ]
    starts, owner_of, begins, is_draft = to_device(arrays, whole.slots.device)
    return Segments(
        query_start=query_start,
        num_singles=whole.num_singles,
        starts=starts,
        slots=torch.where(is_draft, -1 - drafts.slots[owner_of], whole.slots[owner_of]),
        is_new=whole.is_new[owner_of] & ~is_draft,
        owners=owner_of,
        begins=begins,
        drafts=frozenset(np.flatnonzero(mask).tolist()),
    )
