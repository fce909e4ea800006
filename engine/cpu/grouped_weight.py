"""Weights of 4 or 8 bits whose inputs come in groups, each with a scale of its own (`kernels/csrc/grouped.h`).

A form says how: what number a value stands for, and how scales are kept. Plain weights are rounded to the nearest
numbers of a form; weights that are quantized already are packed as they are. What multiplies them rounds rows to 8 bits
with a scale for each group, sums integers exactly, and adds groups in their order in float32. Where scales are integers
of a column's, a row has one scale and its sums are integers from one end to the other. Knows nothing of models.
"""

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import addressof
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from orcinus.engine.cpu.packed_sources import Source
from orcinus.engine.kernels import structures
from orcinus.engine.kernels.library import Library
from orcinus.engine.platform.memory import MappedFiles, zeroed_bytes

_PANEL = 32  # columns that lie together; PANEL of linear.h
_ROWS_AT_ONCE = 8192  # a multiple of 32
_SOURCE_ROWS_AT_ONCE = 1024  # of what has to be unpacked first
_SCALES = ("float16", "two-level", "exponent", "column")  # by the numbers of grouped.h
_BLOCK_INPUTS = 256  # whose groups share a float16 in two levels
_COLUMN_BLOCK_INPUTS = 64  # whose integers lie together
_EXPONENTS_OF_BLOCK = 8


@dataclass(frozen=True, slots=True)
class GroupForm:
    """Says what the values of a weight stand for: `scale * (value - zero) - offset`.

    Values are stored in `bits`, and those of 8 are below 2 to the power of `value_bits`. A table has the values of four
    bits in place of their numbers. A scale is a float16 of its group; an integer of 8 bits with a sign times a float16
    of 256 inputs (and an offset one without a sign); 2 to the power of a byte less 127; or an integer of -15 to 15
    times a float32 of the whole column. `value - zero` must fit into 8 bits, with a sign.
    """

    bits: Literal[4, 8]
    size: Literal[16, 32] = 32
    zero: int = 0
    scales: Literal["float16", "two-level", "exponent", "column"] = "float16"
    has_offsets: bool = False
    table: tuple[int, ...] | None = None
    value_bits: int = 8

    def __post_init__(self) -> None:
        assert self.table is None or (self.bits == 4 and len(self.table) == 16)
        assert not (self.has_offsets and self.scales in ("exponent", "column"))
        assert self.scales != "column" or (self.bits, self.zero, self.table) == (4, 8, None)

    @property
    def groups_of_block(self) -> int:
        """Return how many groups have their scales together."""
        of_scales = {
            "float16": 1,
            "two-level": _BLOCK_INPUTS // self.size,
            "exponent": _EXPONENTS_OF_BLOCK,
            "column": _COLUMN_BLOCK_INPUTS // self.size,
        }
        return of_scales[self.scales]

    @property
    def has_wide_scales(self) -> bool:
        """Return whether a block has a float16 for each column."""
        return self.scales in ("float16", "two-level")

    @property
    def block_scale_bytes(self) -> int:
        """Return the bytes of a block's scales for one column."""
        wide = 2 if self.has_wide_scales else 0
        narrow = 0 if self.scales == "float16" else self.groups_of_block
        return (wide + narrow) * (2 if self.has_offsets else 1)

    @property
    def bits_per_weight(self) -> float:
        """Return what a weight takes, its part of the scales included, but for one of the whole column."""
        return self.bits + 8 * self.block_scale_bytes / (self.groups_of_block * self.size)

    def num_groups(self, in_features: int) -> int:
        return -(-in_features // self.size)

    def num_blocks(self, in_features: int) -> int:
        return -(-self.num_groups(in_features) // self.groups_of_block)


INT4 = GroupForm(4, zero=8)
INT8 = GroupForm(8, zero=128)
COLUMN_INT4 = GroupForm(4, size=16, zero=8, scales="column")


@dataclass(frozen=True, slots=True)
class GroupedRows:
    """Holds a weight (out_features, in_features) as values of a byte each, uint8, and their scales.

    `scales` and `offsets` are float16 (out_features, num_blocks), the parts of two levels, exponents and integers of a
    column's a byte for each group, (out_features, num_groups); `column_scales` are float32 (out_features,). What the
    form does not have is None.
    """

    values: Tensor
    scales: Tensor | None = None
    offsets: Tensor | None = None
    scale_parts: Tensor | None = None
    offset_parts: Tensor | None = None
    column_scales: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def raw(self) -> "None":
        """Return that there are no blocks of a file here."""

    def part(self, first: int, end: int) -> "GroupedRows":
        """Return some of the rows."""
        parts = (self.scales, self.offsets, self.scale_parts, self.offset_parts, self.column_scales)
        return GroupedRows(self.values[first:end], *(None if part is None else part[first:end] for part in parts))

    def check(self, form: GroupForm) -> None:
        """Raise `ValueError` unless the tensors have the types and shapes of a form."""
        rows, width = self.shape
        blocks, groups = (rows, form.num_blocks(width)), (rows, form.num_groups(width))
        has_wide, has_parts = form.has_wide_scales, form.scales != "float16"
        for name, part, is_there, shape, size in (
            ("values", self.values, True, (rows, width), 1),
            ("scales", self.scales, has_wide, blocks, 2),
            ("offsets", self.offsets, has_wide and form.has_offsets, blocks, 2),
            ("scale_parts", self.scale_parts, has_parts, groups, 1),
            ("offset_parts", self.offset_parts, has_parts and form.has_offsets, groups, 1),
            ("column_scales", self.column_scales, form.scales == "column", (rows,), 4),
        ):
            found = None if part is None else (tuple(part.shape), part.itemsize)
            wanted = (shape, size) if is_there else None
            if found != wanted:
                raise ValueError(f"{name} of a weight in groups must have (shape, bytes) {wanted}, not {found}")


# How blocks of a file become groups, by the numbers of block_packing.inl.
Packing = Literal["nibbles of 32", "bytes of 32", "exponent of 32", "Q4_K", "Q5_K", "Q6_K"]
_PACKINGS: tuple[Packing, ...] = ("nibbles of 32", "bytes of 32", "exponent of 32", "Q4_K", "Q5_K", "Q6_K")


@dataclass(frozen=True, slots=True)
class RawBlocks:
    """Says where blocks lie, rows of whole ones, (count, row_bytes), that our kernels pack as they are.

    `order`, int64 (count,), has the place of each row, or is None. Who has it keeps the memory alive.
    """

    packing: Packing
    address: int
    count: int
    row_bytes: int
    block_inputs: int
    block_bytes: int
    order: Tensor | None

    def native(self) -> structures.BlockRows:
        return structures.BlockRows(
            data=self.address,
            order=None if self.order is None else self.order.data_ptr(),
            count=self.count,
            row_bytes=self.row_bytes,
            packing=_PACKINGS.index(self.packing),
            block_inputs=self.block_inputs,
            block_bytes=self.block_bytes,
        )


class RowSource(Protocol):
    """Has a weight (out_features, in_features) that is unpacked some rows at a time."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def raw(self) -> RawBlocks | None:
        """Return the blocks of all rows if they can be packed as they are."""
        ...

    def part(self, first: int, end: int) -> GroupedRows | Tensor:
        """Return some of the rows."""
        ...


class GroupedWeight:
    """Holds the packed rows of one or more weights of one form, with their biases, as `PackedWeight` does.

    Plain weights (out_features, in_features) are rounded to the form, which must be `INT4`, `INT8` or `COLUMN_INT4`.
    """

    kind = "grouped"

    def __init__(
        self,
        library: Library,
        form: GroupForm,
        weights: Sequence[Tensor | RowSource],
        biases: Sequence[Tensor | None],
        *,
        alternates: bool = False,
    ) -> None:
        self._prepare(library, form, (sum(weight.shape[0] for weight in weights), weights[0].shape[1]), {})
        self.alternates = alternates
        files = MappedFiles()
        spread, first = 2 if alternates else 1, 0
        for weight in weights:
            self._pack(weight, first, spread, files)
            first += _PANEL // 2 if alternates else weight.shape[0]
        self._add_biases([weight.shape[0] for weight in weights], biases)

    @classmethod
    def restored(
        cls,
        library: Library,
        form: GroupForm,
        shape: tuple[int, int],
        tensors: Mapping[str, Tensor],
        biases: Sequence[tuple[int, Tensor | None]],
        *,
        alternates: bool,
    ) -> "GroupedWeight":
        """Return a weight that was packed before, (out_features, in_features), over its `tensors`.

        `biases` come with the number of outputs of each layer. Raises `ValueError` for tensors of another size.
        """
        packed = cls.__new__(cls)
        packed._prepare(library, form, shape, tensors)
        packed.alternates = alternates
        packed._add_biases([size for size, _ in biases], [bias for _, bias in biases])
        return packed

    def _prepare(
        self, library: Library, form: GroupForm, shape: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> None:
        """Make room for the columns of a weight, or take them from `tensors`."""
        self.form = form
        self.out_features, self.in_features = shape
        self.sources: tuple[Source, ...] = ()
        self._library = library
        self._num_columns = -(-self.out_features // _PANEL) * _PANEL
        num_bytes = self._num_columns * self._column_bytes()
        self._panels = taken(tensors, "panels", torch.uint8, num_bytes) if tensors else zeroed_bytes(num_bytes)
        self._bias: Tensor | None = None
        self._scales: Tensor | None = None
        if form.scales == "column":
            count = self._num_columns
            self._scales = (
                taken(tensors, "scales", torch.float32, count) if tensors else torch.zeros(count, dtype=torch.float32)
            )
        self._table = (ctypes.c_uint8 * 16)(*form.table) if form.table else None
        self._groups = self._group_structure()
        self.native = structures.Linear(
            panels=self._panels.data_ptr(),
            scales=None if self._scales is None else self._scales.data_ptr(),
            groups=addressof(self._groups),
            in_features=self.in_features,
            out_features=self.out_features,
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return what `restored` takes."""
        return {"panels": self._panels} | ({} if self._scales is None else {"scales": self._scales})

    @property
    def nbytes(self) -> int:
        return self._panels.nbytes

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _column_bytes(self) -> int:
        form, width = self.form, self.in_features
        values = form.num_groups(width) * form.size * form.bits // 8
        return values + form.num_blocks(width) * form.block_scale_bytes

    def _group_structure(self) -> structures.Groups:
        form = self.form
        return structures.Groups(
            table=None if self._table is None else addressof(self._table),
            bits=form.bits,
            value_bits=max(form.table).bit_length() if form.table else min(form.bits, form.value_bits),
            size=form.size,
            zero=form.zero,
            scales=_SCALES.index(form.scales),
            has_offsets=form.has_offsets,
            kernel=self._library.grouped_kernel,
        )

    def _pack(self, weight: Tensor | RowSource, first: int, spread: int, files: MappedFiles) -> None:
        blocks = None if isinstance(weight, Tensor) or first % (_PANEL // 2) else weight.raw()
        if blocks is not None:
            self._library.pack_blocks(self.native, blocks.native(), first=first, spread=spread)
            return
        step = _ROWS_AT_ONCE if isinstance(weight, Tensor | GroupedRows) else _SOURCE_ROWS_AT_ONCE
        for row in range(0, weight.shape[0], step):
            end = min(row + step, weight.shape[0])
            part = weight[row:end] if isinstance(weight, Tensor) else weight.part(row, end)
            if isinstance(part, Tensor):
                self._quantize(part, first + row * spread, spread)
                files.release(part)
            else:
                self._pack_grouped(part, first + row * spread, spread)

    def _quantize(self, rows: Tensor, first: int, spread: int) -> None:
        assert self.form in (INT4, INT8, COLUMN_INT4)
        plain = rows.to(torch.bfloat16).contiguous()
        address, stride, count = plain.data_ptr(), plain.stride(0), plain.shape[0]
        self._library.quantize_groups(self.native, address, stride, count, first=first, spread=spread)

    def _pack_grouped(self, rows: GroupedRows, first: int, spread: int) -> None:
        rows.check(self.form)
        values = rows.values if rows.values.stride(1) == 1 else rows.values.contiguous()
        names = ("scales", "offsets", "scale_parts", "offset_parts", "column_scales")
        parts = {name: part.contiguous() for name in names if (part := getattr(rows, name)) is not None}
        native = structures.GroupedRows(
            values=values.data_ptr(),
            count=values.shape[0],
            value_stride=values.stride(0),
            **{name: part.data_ptr() for name, part in parts.items()},
        )
        self._library.pack_groups(self.native, native, first=first, spread=spread)

    def _add_biases(self, sizes: Sequence[int], biases: Sequence[Tensor | None]) -> None:
        self._bias = bias_by_column(sizes, biases, self._num_columns, alternates=self.alternates)
        self.native.bias = None if self._bias is None else self._bias.data_ptr()

    def exact_rows(self, indices: Tensor) -> Tensor:
        """Return (n,) columns of the packed weight, rows of the plain one, as (n, in_features) in float32."""
        columns = indices.to(torch.int64).contiguous()
        out = torch.empty(columns.numel(), self.in_features, dtype=torch.float32)
        self._library.unpack_groups(self.native, columns.data_ptr(), columns.numel(), out.data_ptr())
        return out

    def rows(self, indices: Tensor) -> Tensor:
        """Return the same in bfloat16."""
        return self.exact_rows(indices).bfloat16()

    def unpacked(self) -> Tensor:
        """Return the weight (out_features, in_features) in bfloat16, in the order of the packed columns."""
        whole = torch.empty(self.out_features, self.in_features, dtype=torch.bfloat16)
        for first in range(0, self.out_features, _ROWS_AT_ONCE):
            part = whole[first : first + _ROWS_AT_ONCE]
            part.copy_(self.exact_rows(torch.arange(first, first + part.shape[0])))
        return whole


def bias_by_column(
    sizes: Sequence[int], biases: Sequence[Tensor | None], num_columns: int, *, alternates: bool
) -> Tensor | None:
    """Return the biases of layers with so many outputs each, (num_columns,), or None if there are none."""
    if all(bias is None for bias in biases):
        return None
    by_column, spread, first = torch.zeros(num_columns, dtype=torch.float32), 2 if alternates else 1, 0
    for size, bias in zip(sizes, biases, strict=True):
        if bias is not None:
            by_column[_columns(bias.numel(), first, spread)] = bias.float()
        first += _PANEL // 2 if alternates else size
    return by_column


def taken(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, count: int) -> Tensor:
    """Return one of what was kept of a packed weight. Raises `ValueError` if it is not what it has to be."""
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype is not dtype or tensor.shape != (count,) or tensor.data_ptr() % 64 != 0:
        raise ValueError(f"there is no {name} of {count} {dtype} at an address that vectors begin at")
    return tensor


def _columns(count: int, first: int, spread: int) -> Tensor:
    """Return where rows of a weight lie in a packed one; see `column_of`."""
    rows = torch.arange(count)
    return first + rows // 16 * spread * 16 + rows % 16
