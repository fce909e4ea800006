"""What one run of a model tells its modules besides the hidden states: who attends, over what, for which sequences.

Whoever runs the model enters a `StepContext`. Each module of ours that stands in for one of the model's, or that the
model's own code calls, reads there what it needs. Knows no backend, no model and no request.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from orcinus.engine.attention.interface import AttentionMetadata, LayerAttention


@dataclass(frozen=True, slots=True)
class StepContext:
    """One run of the model. `metadata` is None where no cache is attended over."""

    attention: LayerAttention
    metadata: AttentionMetadata | None = None


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
