"""The blocks of GGUF's quantized types, as weights in groups: the same numbers, in the form that our kernels multiply.

A type that no form holds exactly is dequantized, a part of a tensor at a time, and rounded to 8 bits in groups of 32.
How blocks lie in bytes is what `gguf.quants` says. Knows nothing of models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.engine.cpu.grouped_weight import INT4, INT8, GroupedRows, GroupForm, Packing, RawBlocks

Bytes = NDArray[np.uint8]
# Of (num_blocks, type_size): the values of each block, and by their names its scales, each (num_blocks, how many).
Unpacked = tuple[Bytes, dict[str, NDArray[Any]]]

_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_PLAIN = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")


@dataclass(frozen=True, slots=True)
class BlockType:
    """Says how blocks of one type become weights in groups."""

    form: GroupForm
    unpack: Callable[[Bytes], Unpacked]
    packing: Packing | None = None  # by which our kernels do both at once


def is_quantized(type_name: str) -> bool:
    """Return whether a type of this name has blocks."""
    return type_name not in _PLAIN


def is_exact(type_name: str) -> bool:
    """Return whether a quantized type keeps its numbers."""
    return type_name in _TYPES


class BlockRows:
    """Reads rows of a quantized tensor (out_features, in_features) as weights in groups, some at a time.

    `data` is (out_features, bytes), and `order` (out_features,) says where each row lies in it, or `columns`
    (in_features,) where each column does. Columns that leave their block have it dequantized.
    """

    def __init__(
        self,
        data: Bytes,
        type_name: str,
        order: NDArray[np.int64] | None = None,
        columns: NDArray[np.int64] | None = None,
    ) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        self._data, self._order, self.type_name = data, order, type_name
        self._type = GGMLQuantizationType[type_name]
        self._block, self._bytes = GGML_QUANT_SIZES[self._type]
        self._blocks, self._columns = self._moved(columns)
        self.is_exact = is_exact(type_name) and self._columns is None
        self.form = _TYPES[type_name].form if self.is_exact else INT8

    def _moved(self, columns: NDArray[np.int64] | None) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """Return where each block of a row lies, if whole blocks are moved, and else where each column does."""
        if columns is None or np.array_equal(columns, np.arange(columns.size)):
            return None, None
        by_block = columns.reshape(-1, self._block)
        firsts = by_block[:, :1]
        are_whole = np.array_equal(by_block, firsts + np.arange(self._block)) and not np.any(firsts % self._block)
        return (firsts.ravel() // self._block, None) if are_whole else (None, columns)

    @property
    def shape(self) -> tuple[int, int]:
        count = self._data.shape[0] if self._order is None else self._order.size
        return count, self._data.shape[1] // self._bytes * self._block

    def raw(self) -> RawBlocks | None:
        """Return the blocks if our kernels can pack them as they are: most of the common types."""
        packing = _TYPES[self.type_name].packing if self.is_exact and self._blocks is None else None
        if packing is None or not self._data.flags.c_contiguous:
            return None
        order = None if self._order is None else torch.from_numpy(np.ascontiguousarray(self._order, np.int64))
        count = self._data.shape[0] if self._order is None else self._order.size
        return RawBlocks(
            packing=packing,
            address=self._data.ctypes.data,
            count=count,
            row_bytes=self._data.shape[1],
            block_inputs=self._block,
            block_bytes=self._bytes,
            order=order,
        )

    def part(self, first: int, end: int) -> GroupedRows | Tensor:
        """Return some of the rows: in groups, or where no form holds them as they are, in float32."""
        raw = self._data[first:end] if self._order is None else self._data[self._order[first:end]]
        count = raw.shape[0]
        if self._blocks is not None:
            raw = raw.reshape(count, -1, self._bytes)[:, self._blocks].reshape(count, -1)
        if not self.is_exact:
            from gguf import dequantize

            values = dequantize(raw, self._type)
            return torch.from_numpy(values if self._columns is None else values[:, self._columns])
        values, scales = _TYPES[self.type_name].unpack(np.ascontiguousarray(raw).reshape(-1, self._bytes))
        tensors = {name: torch.from_numpy(part.reshape(count, -1)) for name, part in scales.items()}
        return GroupedRows(torch.from_numpy(values.reshape(count, -1)), **tensors)


# ---- one type each


def _q8_0(blocks: Bytes) -> Unpacked:
    return blocks[:, 2:] ^ np.uint8(0x80), {"scales": _halves(blocks, 0)}


def _q4_0(blocks: Bytes) -> Unpacked:
    return _bits(blocks[:, 2:], 4, 16), {"scales": _halves(blocks, 0)}


def _q4_1(blocks: Bytes) -> Unpacked:
    return _bits(blocks[:, 4:], 4, 16), {"scales": _halves(blocks, 0), "offsets": -_halves(blocks, 2)}


def _q5_0(blocks: Bytes) -> Unpacked:
    values = _with_high_bits(_bits(blocks[:, 6:], 4, 16), _single_bits(blocks[:, 2:6]))
    return values, {"scales": _halves(blocks, 0)}


def _q5_1(blocks: Bytes) -> Unpacked:
    values = _with_high_bits(_bits(blocks[:, 8:], 4, 16), _single_bits(blocks[:, 4:8]))
    return values, {"scales": _halves(blocks, 0), "offsets": -_halves(blocks, 2)}


def _q2_k(blocks: Bytes) -> Unpacked:
    both = blocks[:, :16]
    scales = {"scale_parts": both & np.uint8(15), "offset_parts": both >> 4}
    return _bits(blocks[:, 16:80], 2, 32), scales | {"scales": _halves(blocks, 80), "offsets": _halves(blocks, 82)}


def _q3_k(blocks: Bytes) -> Unpacked:
    values = _bits(blocks[:, 32:96], 2, 32) | _bits(blocks[:, :32], 1, 32) << np.uint8(2)
    parts = _with_high_bits(_bits(blocks[:, 96:104], 4, 8), _bits(blocks[:, 104:108], 2, 4))
    return values, {"scales": _halves(blocks, 108), "scale_parts": parts - np.uint8(32)}


def _q4_k(blocks: Bytes) -> Unpacked:
    return _bits(blocks[:, 16:], 4, 32), _k_scales(blocks)


def _q5_k(blocks: Bytes) -> Unpacked:
    return _with_high_bits(_bits(blocks[:, 48:], 4, 32), _bits(blocks[:, 16:48], 1, 32)), _k_scales(blocks)


def _q6_k(blocks: Bytes) -> Unpacked:
    values = _with_high_bits(_bits(blocks[:, :128], 4, 64), _bits(blocks[:, 128:192], 2, 32))
    return values, {"scales": _halves(blocks, 208), "scale_parts": blocks[:, 192:208]}


def _mxfp4(blocks: Bytes) -> Unpacked:
    exponents = np.maximum(blocks[:, :1], 1) - np.uint8(1)  # of half the scale, as the table is doubled
    return _bits(blocks[:, 1:], 4, 16), {"scale_parts": exponents}


def _iq4_xs(blocks: Bytes) -> Unpacked:
    low = (blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & np.uint8(15)).reshape(-1, 8)
    high = (blocks[:, 2:4, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)).reshape(-1, 8)
    parts = (low | high << 4) - np.uint8(32)
    return _bits(blocks[:, 8:], 4, 16), {"scales": _halves(blocks, 0), "scale_parts": parts}


# ---- what they have in common


def _halves(blocks: Bytes, at: int) -> NDArray[np.float16]:
    """Return the float16 that begins at a byte of each block, (num_blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _bits(packed: Bytes, width: int, run: int) -> Bytes:
    """Return values of a few bits: of each `run` bytes first the lowest bits of all, then the next."""
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(1, 1, -1, 1)
    values = packed.reshape(packed.shape[0], -1, 1, run) >> shifts
    values &= np.uint8((1 << width) - 1)
    return values.reshape(packed.shape[0], -1)


def _single_bits(packed: Bytes) -> Bytes:
    return np.unpackbits(packed, axis=1, bitorder="little")


def _with_high_bits(low: Bytes, high: Bytes) -> Bytes:
    low |= high << 4
    return low


def _k_scales(blocks: Bytes) -> dict[str, NDArray[Any]]:
    """Return the scales of Q4_K and Q5_K: eight of 6 bits and as many offsets in 12 bytes, behind two float16."""
    low, offset_low, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    parts = np.concatenate([low & 0x3F, rest & 0x0F | low >> 2 & 0x30], axis=1)
    offset_parts = np.concatenate([offset_low & 0x3F, rest >> 4 | offset_low >> 2 & 0x30], axis=1)
    scales = {"scales": _halves(blocks, 0), "offsets": _halves(blocks, 2)}
    return scales | {"scale_parts": parts, "offset_parts": offset_parts}


def _shifted(table: tuple[int, ...], zero: int) -> tuple[int, ...]:
    return tuple(number + zero for number in table)


MXFP4 = GroupForm(4, zero=12, scales="exponent", table=_shifted(_E2M1, 12))  # with half of each scale

_OFFSET_4 = GroupForm(4, has_offsets=True)
_IQ4_TABLE = _shifted(_IQ4, 128)

_TYPES = {
    "Q8_0": BlockType(INT8, _q8_0, "bytes of 32"),
    "Q4_0": BlockType(INT4, _q4_0, "nibbles of 32"),
    "Q4_1": BlockType(_OFFSET_4, _q4_1),
    "Q5_0": BlockType(GroupForm(8, zero=16, value_bits=5), _q5_0),
    "Q5_1": BlockType(GroupForm(8, has_offsets=True, value_bits=5), _q5_1),
    "Q2_K": BlockType(GroupForm(4, size=16, scales="two-level", has_offsets=True), _q2_k),
    "Q3_K": BlockType(GroupForm(4, size=16, zero=4, scales="two-level"), _q3_k),
    "Q4_K": BlockType(GroupForm(4, scales="two-level", has_offsets=True), _q4_k, "Q4_K"),
    "Q5_K": BlockType(GroupForm(8, scales="two-level", has_offsets=True, value_bits=5), _q5_k, "Q5_K"),
    "Q6_K": BlockType(GroupForm(8, size=16, zero=32, scales="two-level", value_bits=6), _q6_k, "Q6_K"),
    "MXFP4": BlockType(MXFP4, _mxfp4, "exponent of 32"),
    "IQ4_NL": BlockType(GroupForm(4, zero=128, table=_IQ4_TABLE), _q4_0, "nibbles of 32"),
    "IQ4_XS": BlockType(GroupForm(4, zero=128, scales="two-level", table=_IQ4_TABLE), _iq4_xs),
}
