"""Which layers of a model a packed weight was made of, by their names, so that it can be told when it is kept.

Knows nothing of models but that modules have names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

_NAME = "name_in_model"


@dataclass(frozen=True, slots=True)
class Source:
    """Names a layer, and says how many outputs it has."""

    name: str
    out_features: int


def name_linears(model: nn.Module) -> None:
    """Note on each module of a model that has a matrix for a weight what it is called."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name and getattr(weight, "ndim", 0) == 2:
            setattr(module, _NAME, name)


def sources_of(linears: Sequence[Any]) -> tuple[Source, ...]:
    """Return the layers that are packed as one, or nothing if one has no name."""
    names = [getattr(linear, _NAME, None) for linear in linears]
    if any(name is None for name in names):
        return ()
    # Conv1D of GPT-2 has no out_features, and its weight the other way round.
    sizes = [int(getattr(linear, "out_features", None) or linear.weight.shape[1]) for linear in linears]
    return tuple(Source(str(name), size) for name, size in zip(names, sizes, strict=True))
