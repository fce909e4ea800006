"""What one run of a model tells its modules besides the hidden states: who attends, over what, for which sequences.

Whoever runs the model enters a `StepContext`. Each module of ours that stands in for one of the model's, or that the
model's own code calls, reads there what it needs. Knows no backend, no model and no request.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from orcinus.engine.attention.interface import AttentionMetadata, LayerAttention


@dataclass(frozen=True, slots=True)
class StepContext:
    """Describes one run of the model. Tensors are on its device; what the run has nothing of is None, or empty.

    A state slot belongs to one running request, from its admission until it is released or preempted; then the next
    request gets it with what is left in it. So a module that keeps states begins a sequence anew at its position 0.
    Within a step it reads all states before it writes any, as a recorded step may name a sequence several times. Slots
    go from 0 to `max_num_seqs`, included: the last one is no request's, and recordings are made with it. A sequence of
    which a prefix is reused begins behind that prefix, with the state copied to its slot.

    Where a step has drafts, which may be rejected, a sequence's state in front of them is left in its slot, and the one
    behind them in another slot, so that both are there.
    """

    attention: LayerAttention
    metadata: tuple[AttentionMetadata, ...] = ()  # of each cache group; the sequences are the same in all of them
    adapter_rows: Tensor | None = None  # (num_tokens,) int64, of the runner's table, 0 for none; None: nobody has one
    state_slots: Tensor | None = None  # (num_seqs,) int64, in the order of the step's sequences
    draft_slots: "DraftSlots | None" = None  # None: no sequence has drafts, or there are no states


@dataclass(frozen=True, slots=True)
class DraftSlots:
    """Says how many of each sequence's last tokens are drafts, and where the state behind them goes, if there are any.

    `slots` (num_seqs,) int64 is on the device, and names no slot that the step's `state_slots` do.
    """

    counts: Sequence[int]
    slots: Tensor


@runtime_checkable
class SlotState(Protocol):
    """Keeps a state for each running request, in the slots of the current `StepContext`: a module of a model does.

    Start-up finds it among the model's modules, counts what it keeps and gives it memory. In a run without slots, which
    is made before that, it computes one whole sequence from its start. What a state was after some earlier token is not
    known later, but for the tokens after which it was copied, and for the last ones that are not drafts (`DraftSlots`):
    all of it is in that memory, a slot in a row.
    """

    @property
    def bytes_per_slot(self) -> int:
        """Return what it keeps for a slot, a multiple of 64 bytes."""

    def take_memory(self, memory: Tensor) -> None:
        """Keep the states there from now on: uint8 (num_slots, bytes_per_slot), whose rows may be apart."""


_CURRENT: ContextVar[StepContext | None] = ContextVar("current_step", default=None)


@contextmanager
def step_context(context: StepContext) -> Iterator[None]:
    """Hand `context` to the modules of any model that runs inside."""
    token = _CURRENT.set(context)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_step() -> StepContext:
    """Return the context of the model that is running now."""
    context = _CURRENT.get()
    assert context is not None, "the model runs outside of any step_context"
    return context
