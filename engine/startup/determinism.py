"""Checks that a model can be served deterministically: alone, in any batch and in any chunks, to the last bit.

How it is computed so is `engine.cpu.row_by_row` and the attention backend's `token_by_token`. It knows no requests.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from orcinus.engine.attention.cache import allocate_cache
from orcinus.engine.attention.interface import batch_metadata
from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.startup.probe import ServedModel, allocate_states

_CPU = torch.device("cpu")


def check_device(device: torch.device) -> None:
    """Raise `ModelLoadError` on a device where deterministic mode would promise what is not so."""
    if device.type != "cpu":
        raise ModelLoadError(
            f"deterministic mode is for CPUs alone so far, and the device is {device.type} (--device cpu)"
        )


def check_positions(causal_lm: nn.Module) -> None:
    """Raise `ModelLoadError` for rotary positions whose angles depend on the longest sequence of a step."""
    for module in causal_lm.modules():
        types = getattr(module, "rope_type", None)
        for kind in types.values() if isinstance(types, dict) else (types,):
            if kind == "longrope" or "dynamic" in str(kind):
                raise ModelLoadError(
                    f"{type(causal_lm).__name__} cannot be served deterministically: its rotary positions ({kind})"
                    " depend on the longest sequence of a step"
                )


# Ends of the chunks in which the checked sequence is computed: beside another one, and alone. Single tokens, chunks
# that begin and end anywhere, few rows and many. The whole is longer than what the attention takes at once.
_ENDS = (
    ((1, 8, 40, 41, 50, 77), (30, 31, 32, 60, 61, 77)),
    ((1, 2, 5, 40, 76, 77),),
)


def check_deterministic(served: ServedModel, block_size: int) -> None:
    """Compute a sequence whole and alone, then in chunks of several sizes: not a bit may differ.

    Raises `ModelLoadError` for a model whose code mixes rows in a way that is not known here.
    """
    length = min(_ENDS[0][0][-1], served.max_context)
    whole = _computed(served, block_size, [[(0, 0, length)]], length)
    for ends in _ENDS:
        steps = _steps(*([min(end, length) for end in own] for own in ends))
        in_chunks = _computed(served, block_size, steps, length)
        differing = [i for i, (a, b) in enumerate(zip(whole, in_chunks, strict=True)) if not torch.equal(a, b)]
        if differing:
            raise ModelLoadError(
                f"{served.model.name} cannot be served deterministically: what it computes for the token at position"
                f" {differing[0]} depends on what shares the step"
            )


def _steps(*ends: list[int]) -> list[list[tuple[int, int, int]]]:
    """Return, for each step, the (sequence, first, end) that it computes, single tokens first."""
    spans = [[(i, a, b) for a, b in zip([0, *own], own, strict=False)] for i, own in enumerate(ends)]
    steps = [[part for part in step if part[1] < part[2]] for step in zip(*spans, strict=True)]
    return [sorted(step, key=lambda part: part[2] - part[1] > 1) for step in steps if step]


def _computed(
    served: ServedModel, block_size: int, steps: list[list[tuple[int, int, int]]], length: int
) -> list[Tensor]:
    """Compute the hidden state and the logits, as one tensor, at each position of sequence 0."""
    width = math.ceil(length / block_size)
    layers = allocate_cache(served.backend, served.kv, [2 * width], block_size, dtype=served.cache_dtype, device=_CPU)
    attention = PagedAttention(served.backend, layers)
    tables = np.arange(2 * width, dtype=np.int32).reshape(2, width)
    allocate_states(served, 2, _CPU)
    computed: list[Tensor] = []
    for step in steps:
        metadata = batch_metadata([span[1:] for span in step], tables[[s[0] for s in step]], block_size, _CPU)
        sequences = torch.cat([torch.full((end - first,), i) for i, first, end in step])
        positions = torch.cat([torch.arange(first, end) for _, first, end in step])
        with step_context(StepContext(attention, (metadata,), state_slots=torch.tensor([span[0] for span in step]))):
            hidden = served.model.hidden_states(
                (positions * 37 + sequences * 11 + 5) % served.model.vocab_size, positions
            )
        rows = torch.cat([hidden, served.model.logits(hidden)], dim=-1)
        computed += rows[sequences == 0]
    return computed
