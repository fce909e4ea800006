"""Where the sequences of a step lie in its flat row of tokens, and where their states are. Knows no layer."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from orcinus.engine.attention.step_context import StepContext


@dataclass(frozen=True)
class Segments:
    """Describes the sequences of one step, each a stretch of the step's tokens; those of one token come first.

    `starts` (num_seqs + 1,) int32, `slots` (num_seqs,) int64 and `is_new` (num_seqs,) bool are on the model's device.
    A new sequence is at its position 0, where its slot holds what another one left.
    """

    query_start: list[int]
    num_singles: int
    starts: Tensor
    slots: Tensor
    is_new: Tensor

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
        """The sequences of more than one token."""
        return range(self.num_singles, len(self.query_start) - 1)

    @cached_property
    def _with_history(self) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        return {}

    def with_history(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return how rows of inputs with `width` earlier ones before each sequence are put together, as indices.

        Of (num_seqs * width earlier rows, then num_tokens new ones): the rows in their order (num_seqs * width +
        num_tokens,), the places of the new ones in that order (num_tokens,), and those of the last `width` of each
        sequence (num_seqs, width).
        """
        if width not in self._with_history:
            self._with_history[width] = self._history_indices(width)
        return self._with_history[width]

    def _history_indices(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        device, num_seqs = self.slots.device, len(self.query_start) - 1
        before = width * (torch.arange(num_seqs, device=device) + 1)  # earlier rows up to and with each sequence's
        num_tokens = self.query_start[-1]
        if self.num_singles == num_seqs:
            sequence = torch.arange(num_seqs, device=device)
        else:
            counts = self.starts.diff()
            sequence = torch.repeat_interleave(counts, output_size=num_tokens)
        places = torch.arange(num_tokens, device=device) + before[sequence]
        taps = torch.arange(width, device=device)
        ends = (self.starts[1:].long() + before).unsqueeze(1)
        order = torch.empty(num_seqs * width + num_tokens, dtype=torch.int64, device=device)
        order[places] = torch.arange(num_seqs * width, num_seqs * width + num_tokens, device=device)
        firsts = (self.starts[:-1].long() + before - width).unsqueeze(1)
        order[(firsts + taps).flatten()] = torch.arange(num_seqs * width, device=device)
        return order, places, ends - width + taps


_last: tuple[StepContext, Segments] | None = None


def _segments_of(step: StepContext) -> Segments:
    meta = step.metadata[0]
    assert step.state_slots is not None
    num_new = meta.query_start_tensor.diff()
    return Segments(
        query_start=meta.query_start,
        num_singles=meta.num_decodes,
        starts=meta.query_start_tensor,
        slots=step.state_slots,
        is_new=meta.seq_lens_tensor == num_new,
    )
