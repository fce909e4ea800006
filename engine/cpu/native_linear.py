"""Linear layers that our own kernels multiply (`engine/kernels/csrc/linear.cpp`), in bfloat16 or in integers.

A weight is packed once, into memory of its own; several of one input can be packed as one. In 8 bits each column has
a scale, and so has each row of what it is multiplied by, at the time: sums are exact, and rounding happens where
numbers become integers. Weights of 4 or 8 bits whose scales belong to groups of inputs are in `grouped_weight.py`.
Knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from orcinus.engine.cpu.grouped_weight import (
    COLUMN_INT4,
    INT8,
    GroupedWeight,
    GroupForm,
    RowSource,
    bias_by_column,
    taken,
)
from orcinus.engine.cpu.int8_linear import joined_bias
from orcinus.engine.cpu.packed_sources import Source
from orcinus.engine.kernels.library import Library
from orcinus.engine.kernels.structures import Linear
from orcinus.engine.platform.memory import MappedFiles, zeroed_bytes

# In 8 bits a weight has a scale for each column, or for each column and group of inputs.
Kind = Literal["bfloat16", "int8", "int4", "int8-groups"]
GROUP_FORMS: dict[Kind, GroupForm] = {"int4": COLUMN_INT4, "int8-groups": INT8}

_PANEL = 32  # columns that lie together; PANEL of linear.h
_ROWS_AT_ONCE = 8192  # a multiple of 32
_PER_LANE = {"bfloat16": 2, "int8": 4}
# Times 255 times 127, this is the largest sum that 32 bits hold.
_MOST_INT8_INPUTS = 65536


class PackedWeight:
    """Holds the packed rows of one or more weights (out_features, in_features), with their biases.

    With `alternates`, two weights of equal size take turns by sixteen rows, as a gated product wants them. What has
    been packed is let go of if it is mapped from a file: it can be read again.
    """

    def __init__(
        self,
        library: Library,
        kind: Kind,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        *,
        alternates: bool = False,
    ) -> None:
        weights = [weight.to(torch.bfloat16).contiguous() for weight in weights]
        self._prepare(library, kind, (sum(weight.shape[0] for weight in weights), weights[0].shape[1]), {})
        self.alternates = alternates
        spread = 2 if alternates else 1
        files = MappedFiles()
        first = 0
        for weight in weights:
            for rows in range(0, weight.shape[0], _ROWS_AT_ONCE):
                self._pack(library, weight[rows : rows + _ROWS_AT_ONCE], first + rows * spread, spread)
                files.release(weight[rows : rows + _ROWS_AT_ONCE])
            first += _PANEL // 2 if alternates else weight.shape[0]
        self._add_biases([weight.shape[0] for weight in weights], biases)

    @classmethod
    def restored(
        cls,
        library: Library,
        kind: Kind,
        shape: tuple[int, int],
        tensors: Mapping[str, Tensor],
        biases: Sequence[tuple[int, Tensor | None]],
        *,
        alternates: bool,
    ) -> "PackedWeight":
        """Return a weight that was packed before, (out_features, in_features), over its `tensors`.

        `biases` come with the number of outputs of each layer. Raises `ValueError` for tensors of another size.
        """
        packed = cls.__new__(cls)
        packed._prepare(library, kind, shape, tensors)
        packed.alternates = alternates
        packed._add_biases([size for size, _ in biases], [bias for _, bias in biases])
        return packed

    def _prepare(self, library: Library, kind: Kind, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> None:
        """Make room for the columns of a weight, or take them from `tensors`."""
        self.kind = kind
        self.out_features, self.in_features = shape
        self.sources: tuple[Source, ...] = ()
        assert kind == "bfloat16" or (kind == "int8" and self.in_features <= _MOST_INT8_INPUTS)
        self._num_lanes = -(-self.in_features // _PER_LANE[kind])
        self._num_columns = -(-self.out_features // _PANEL) * _PANEL
        num_bytes = self._num_columns * self._num_lanes * 4
        self._panels = taken(tensors, "panels", torch.uint8, num_bytes) if tensors else zeroed_bytes(num_bytes)
        self._scales, self._sums = (
            taken(tensors, name, dtype, self._num_columns) if tensors else torch.zeros(self._num_columns, dtype=dtype)
            for name, dtype in (("scales", torch.float32), ("sums", torch.int32))
        )
        self._bias: Tensor | None = None
        self.native = self._structure(library)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return what `restored` takes."""
        return {"panels": self._panels, "scales": self._scales, "sums": self._sums}

    @property
    def nbytes(self) -> int:
        return self._panels.nbytes

    def _structure(self, library: Library) -> Linear:
        return Linear(
            panels=self._panels.data_ptr(),
            scales=self._scales.data_ptr(),
            sums=self._sums.data_ptr(),
            in_features=self.in_features,
            out_features=self.out_features,
            is_int8=self.kind == "int8",
            kernel=library.plain_kernel(self._num_lanes, is_int8=self.kind == "int8"),
        )

    def _pack(self, library: Library, weight: Tensor, first: int, spread: int) -> None:
        library.pack(self.native, weight.data_ptr(), weight.stride(0), weight.shape[0], first=first, spread=spread)

    def _add_biases(self, sizes: Sequence[int], biases: Sequence[Tensor | None]) -> None:
        self._bias = bias_by_column(sizes, biases, self._num_columns, alternates=self.alternates)
        self.native.bias = None if self._bias is None else self._bias.data_ptr()

    def rows(self, indices: Tensor) -> Tensor:
        """Return (n,) columns of the packed weight, rows of the plain one, as (n, in_features).

        They are in bfloat16, or in float32 where they were 8-bit integers.
        """
        lanes = self._panels.view(torch.int32).view(-1, self._num_lanes, _PANEL)
        rows = lanes[indices // _PANEL, :, indices % _PANEL]
        if self.kind == "bfloat16":
            return rows.view(torch.bfloat16)[:, : self.in_features]
        return rows.view(torch.int8)[:, : self.in_features] * self._scales[indices, None]

    def unpacked(self) -> Tensor:
        """Return the weight (out_features, in_features) in bfloat16, in the order of the packed columns."""
        per_lane = _PER_LANE[self.kind]
        dtype = torch.bfloat16 if self.kind == "bfloat16" else torch.int8
        panels = self._panels.view(dtype).view(-1, self._num_lanes, _PANEL, per_lane)
        rows = panels.transpose(1, 2).reshape(self._num_columns, -1)[: self.out_features, : self.in_features]
        if self.kind == "bfloat16":
            return rows
        return (rows.float() * self._scales[: self.out_features, None]).bfloat16()


def packed_weight(
    library: Library,
    kind: Kind | GroupForm,
    weights: Sequence[Tensor | RowSource],
    biases: Sequence[Tensor | None],
    *,
    alternates: bool = False,
) -> PackedWeight | GroupedWeight:
    """Pack weights of a kind, or of a form in groups: what is in groups already must have that form."""
    form = kind if isinstance(kind, GroupForm) else GROUP_FORMS.get(kind)
    if form is not None:
        return GroupedWeight(library, form, weights, biases, alternates=alternates)
    plain = [weight for weight in weights if isinstance(weight, Tensor)]
    assert len(plain) == len(weights)
    assert not isinstance(kind, GroupForm)
    return PackedWeight(library, kind, plain, biases, alternates=alternates)


class NativeLinear(nn.Module):
    """Computes `F.linear` with a packed weight: (..., in_features) to (..., out_features), in bfloat16."""

    def __init__(
        self,
        library: Library,
        kind: Kind | GroupForm,
        weights: Sequence[Tensor | RowSource],
        biases: Sequence[Tensor | None],
    ) -> None:
        super().__init__()
        self._take(library, packed_weight(library, kind, weights, biases), biases)

    @classmethod
    def over(
        cls, library: Library, packed: PackedWeight | GroupedWeight, biases: Sequence[Tensor | None]
    ) -> "NativeLinear":
        """Return a layer over a weight that is packed already, with its biases."""
        linear = cls.__new__(cls)
        nn.Module.__init__(linear)
        linear._take(library, packed, biases)
        return linear

    def _take(self, library: Library, packed: PackedWeight | GroupedWeight, biases: Sequence[Tensor | None]) -> None:
        self._library = library
        self.packed = packed
        self._multiply = library.linear if isinstance(self.packed, PackedWeight) else library.grouped_linear
        self.in_features, self.out_features = self.packed.in_features, self.packed.out_features
        self.packed_bytes = self.packed.nbytes
        self.bias = joined_bias(biases)
        self.num_packed = self.in_features * self.out_features + (0 if self.bias is None else self.out_features)

    @property
    def weight(self) -> Tensor:
        """Return the weight unpacked again, (out_features, in_features), for a model that multiplies by hand."""
        return self.packed.unpacked()

    def weight_rows(self, indices: Tensor) -> Tensor:
        """Return (n,) rows of the weight, (n, in_features), without unpacking the others."""
        return self.packed.rows(indices)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16).reshape(-1, self.in_features)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        out = rows.new_empty(rows.shape[0], self.out_features)
        self._multiply(self.packed.native, rows.data_ptr(), rows.stride(0), rows.shape[0], out.data_ptr())
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)


def can_multiply(library: Library, kind: Kind) -> bool:
    """Return whether this CPU multiplies in this kind."""
    return kind in GROUP_FORMS or library.has_plain_linear
