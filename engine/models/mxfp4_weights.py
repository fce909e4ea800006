"""Weights in MXFP4 as gpt-oss' safetensors files have them: blocks of 32 inputs with a power of two each.

Knows nothing of models and files.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from orcinus.engine.cpu.grouped_weight import GroupedRows, GroupForm
from orcinus.engine.models.gguf_blocks import MXFP4

_NUMBERS = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)
_EXPONENT_OF_ONE = 127


@dataclass(frozen=True, slots=True)
class Mxfp4Weight:
    """Holds a weight (out_features, in_features) of four bits by a table.

    `blocks` are (out_features, num_groups, 16), the first of two inputs in a byte's low bits; `exponents`, those of
    scales and 127, are (out_features, num_groups).
    """

    blocks: Tensor
    exponents: Tensor
    form: ClassVar[GroupForm] = MXFP4
    obstacle: ClassVar[str | None] = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks.shape[0], self.blocks.shape[1] * 2 * self.blocks.shape[2]

    def raw(self) -> None:
        """Return that no kernel packs it as it is stored."""

    def part(self, first: int, end: int) -> GroupedRows:
        """Return some of the rows in groups of 32, with exponents of half the scale, as the form's table is doubled."""
        return GroupedRows(self._values(first, end), scale_parts=self.exponents[first:end].clamp(min=1) - 1)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the whole weight."""
        numbers = torch.tensor(_NUMBERS)[self._values(0, self.shape[0]).int()]
        scales = torch.exp2(self.exponents.float() - _EXPONENT_OF_ONE)
        return (numbers.view(*scales.shape, -1) * scales[..., None]).flatten(1).to(dtype)

    def _values(self, first: int, end: int) -> Tensor:
        packed = self.blocks[first:end]
        return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
