"""Linear layers in 8-bit integers with torch's own operations, for processors that our kernels do not run on.

The numbers are those of `engine.cpu.native_linear`: a scale per column of the weight and per row of the
input, exact sums.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LARGEST = 127


class Int8Linear(nn.Module):
    """Computes `F.linear` with the weights of one or more layers, one below the other, quantized once."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        super().__init__()
        weight, self._scales = _quantized(torch.cat([weight.detach() for weight in weights]))
        self._columns = weight.t()
        self.out_features, self.in_features = weight.shape
        self.bias = joined_bias(biases)

    @property
    def packed_bytes(self) -> int:
        return self._columns.nbytes

    @property
    def weight(self) -> Tensor:
        """Return the weight as it is after rounding, (out_features, in_features)."""
        return (self._columns.t().float() * self._scales).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        integers, scales = _quantized(x.reshape(-1, self.in_features))
        sums = torch._int_mm(integers, self._columns)
        product = sums.float() * self._scales.t() * scales
        if self.bias is not None:
            product += self.bias.float()
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)


def joined_bias(biases: Sequence[Tensor | None]) -> Tensor | None:
    """Return the biases of several layers as one, or None if they have none."""
    given = [bias for bias in biases if bias is not None]
    assert len(given) in (0, len(biases))
    return torch.cat(given) if given else None


def _quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows as integers, and the scale (count, 1) of each. A number that is not finite makes it NaN."""
    rows = rows.float()
    largest = rows.abs().amax(dim=1, keepdim=True)
    factors = torch.where(largest > 0, torch.full_like(largest, _LARGEST) / largest, 0.0)
    integers = torch.nan_to_num(rows * factors).round().to(torch.int8)
    return integers, largest / _LARGEST + 0 * rows.sum(dim=1, keepdim=True)
