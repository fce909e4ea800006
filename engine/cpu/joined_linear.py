"""Linear layers of one input whose weights are packed as one: one product, of which each has its columns.

Knows nothing of models.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

RUN = 16  # columns after which two weights take turns


class JoinedLinears:
    """Computes one product for several layers of one input, and keeps it until every one has its part.

    `linear` computes the product. With `alternates`, its columns are those of two layers that take turns.
    """

    def __init__(self, linear: Any, sizes: Sequence[int], *, alternates: bool = False) -> None:
        self.linear = linear
        self.sizes = list(sizes)
        self.alternates = alternates
        self._input: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()
        self._num_missing = 0

    def part(self, index: int, x: Tensor) -> Tensor:
        """Return a layer's part, (..., its size), of the product with what all are given, (..., in_features)."""
        if x is not self._input:
            self._input = x
            self._parts = self.split(self.linear(x), dim=-1)
            self._num_missing = len(self.sizes)
        part = self._parts[index]
        self._num_missing -= 1
        if self._num_missing == 0:
            self._input, self._parts = None, ()
        return part

    def split(self, whole: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Return what belongs to each layer along a dimension."""
        if not self.alternates:
            return torch.split(whole, self.sizes, dim=dim)
        moved = whole.movedim(dim, -1)
        runs = moved.reshape(*moved.shape[:-1], -1, 2, RUN)
        return tuple(runs[..., i, :].flatten(-2).movedim(-1, dim) for i in range(2))


class LinearPart(nn.Module):
    """Stands for one of the joined layers. Its result is a part of the product's rows, perhaps not contiguous.

    With `order`, (out_features,), the packed columns are the layer's outputs in that order.
    """

    def __init__(self, joined: JoinedLinears, index: int, order: Tensor | None = None) -> None:
        super().__init__()
        self.joined = joined
        self.index = index
        self._places = None if order is None else order.argsort()
        self.in_features, self.out_features = int(joined.linear.in_features), joined.sizes[index]

    @property
    def packed_bytes(self) -> int:
        """Return the bytes of all siblings, for the first of them."""
        return int(getattr(self.joined.linear, "packed_bytes", 0)) if self.index == 0 else 0

    @property
    def num_packed(self) -> int:
        """Return how many parameters of all siblings are packed, for the first of them."""
        return int(getattr(self.joined.linear, "num_packed", 0)) if self.index == 0 else 0

    @property
    def weight(self) -> Tensor:
        """Return the weight unpacked again, (out_features, in_features)."""
        rows = self.joined.split(self.joined.linear.weight, dim=0)[self.index]
        return rows if self._places is None else rows[self._places]

    @property
    def bias(self) -> Tensor | None:
        joined_bias = self.joined.linear.bias
        return None if joined_bias is None else torch.split(joined_bias, self.joined.sizes)[self.index]

    def forward(self, x: Tensor) -> Tensor:
        part = self.joined.part(self.index, x)
        return part if self._places is None else part[..., self._places]


def joined_parts(
    linear: Any, sizes: Sequence[int], orders: Sequence[Tensor | None], *, alternates: bool = False
) -> list[nn.Module]:
    """Return what stands for each layer whose weight is in a product: the product itself if it is one alone."""
    if len(sizes) == 1 and orders[0] is None:
        return [linear]
    joined = JoinedLinears(linear, sizes, alternates=alternates)
    return [LinearPart(joined, i, order) for i, order in enumerate(orders)]
