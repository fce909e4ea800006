"""What transformers' modules of experts have for weights, put together from those of each expert.

They have one weight for gate and up of all experts, one behind the other or in turns, and one for down. Some have
inputs first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orcinus.engine.cpu.native_experts import can_replace, sizes_of

KINDS = ("gate", "up", "down")
KINDS_OF = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}  # by the names of weights
_GROUP = 32  # both sizes of an expert are to be multiples of it, to be multiplied as they are stored

RowsOf = Callable[[int], Tensor]  # those of an expert, (out_features, in_features)


def obstacle_of(experts: Any) -> str | None:
    """Return why a module's experts cannot be multiplied as they are stored, whatever that is; None if they can."""
    if not can_replace(experts):
        return f"{type(experts).__name__} does not go by transformers' interface of experts"
    _, hidden, width = sizes_of(experts)
    if hidden % _GROUP or width % _GROUP:
        return f"their sizes, {hidden} and {width}, are no multiples of {_GROUP}"
    return None


def assembled(experts: Any, rows: Mapping[str, RowsOf], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a module by their names in it, from the rows of each kind."""
    is_transposed = getattr(experts, "is_transposed", False)
    for name, kinds in KINDS_OF.items():
        whole = torch.empty(getattr(experts, name).shape, dtype=dtype)
        for i, expert in enumerate(whole):
            both = joined(experts, [rows[kind](i) for kind in kinds])
            expert.copy_(both.t() if is_transposed else both)
        yield name, whole


def joined(experts: Any, parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of gate and up as a module has them, or those that are alone."""
    if len(parts) == 1 or getattr(experts, "is_concatenated", True):
        return torch.cat(list(parts))
    return torch.stack(list(parts), dim=1).flatten(0, 1)


def parted(experts: Any, both: Tensor) -> tuple[Tensor, Tensor]:
    """Return those of gates and those of what they gate, (num_experts, width, ...), of both as a module has them."""
    if getattr(experts, "is_concatenated", True):
        gate, up = both.chunk(2, dim=1)
        return gate, up
    return both[:, ::2], both[:, 1::2]
