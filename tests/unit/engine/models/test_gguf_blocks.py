"""Blocks of GGUF files as weights in groups: the numbers that gguf says they are, and products of them."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from orcinus.engine.cpu.grouped_weight import GroupedRows, GroupedWeight
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import Library, load_library
from orcinus.engine.models.gguf_blocks import BlockRows, is_exact, is_quantized
from tests.integration.gguf_blocks import dequantized, random_blocks
from tests.unit.engine.cpu.grouped_forms import assert_product

pytestmark = pytest.mark.skipif(load_library() is None, reason="there is no library here")

BITS = {"Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 8.5, "Q5_1": 9, "Q2_K": 5.125, "Q3_K": 4.5625, "Q4_K": 4.625}
BITS |= {"Q5_K": 8.625, "Q6_K": 8.5625, "MXFP4": 4.25, "IQ4_NL": 4.5, "IQ4_XS": 4.3125}
OTHERS = ["IQ3_S", "IQ2_S"]
ROWS, COLUMNS = 1100, 512  # more rows than are unpacked at a time


def layer(rows: BlockRows) -> NativeLinear:
    library = Library(library_path())
    library.use_threads(1, own=True)
    return NativeLinear(library, rows.form, [rows], [None])


def weight_of(linear: NativeLinear) -> Tensor:
    assert isinstance(linear.packed, GroupedWeight)
    return linear.packed.exact_rows(torch.arange(linear.out_features))


@pytest.mark.parametrize("name", BITS)
def test_packed_blocks_are_the_numbers_that_gguf_makes_of_them(name: str) -> None:
    blocks = random_blocks(name, ROWS, COLUMNS)
    order = np.random.default_rng(1).permutation(ROWS)
    rows = BlockRows(blocks, name, order)
    assert is_exact(name)
    assert rows.shape == (ROWS, COLUMNS)
    linear = layer(rows)
    assert torch.equal(weight_of(linear), torch.from_numpy(dequantized(blocks, name)[order]))
    assert linear.packed_bytes == -(-ROWS // 32) * 32 * COLUMNS * BITS[name] / 8


PACKED_AS_THEY_ARE = ["Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "IQ4_NL"]


@pytest.mark.parametrize("name", PACKED_AS_THEY_ARE)
@pytest.mark.parametrize("alternates", [False, True])
def test_blocks_that_kernels_pack_lie_as_those_that_are_unpacked(name: str, alternates: bool) -> None:
    """In panels, of which the last is not full, from rows in any order."""
    count = 80 if alternates else 1090
    parts = [random_blocks(name, count, COLUMNS, seed=seed) for seed in range(2 if alternates else 1)]
    order = np.random.default_rng(1).permutation(count)
    rows = [BlockRows(blocks, name, order) for blocks in parts]
    unpacked = [part.part(0, count) for part in rows]
    assert all(part.raw() is not None for part in rows)

    def packed(weights: Any) -> Tensor:
        library = Library(library_path())
        library.use_threads(2, own=True)
        return GroupedWeight(library, rows[0].form, weights, [None] * len(rows), alternates=alternates)._panels

    assert torch.equal(packed(rows), packed(unpacked))


def test_some_rows_may_be_taken() -> None:
    blocks = random_blocks("Q4_0", 64, COLUMNS)
    rows = BlockRows(blocks, "Q4_0", np.arange(32, 64))
    assert rows.shape == (32, COLUMNS)
    assert torch.equal(weight_of(layer(rows)), torch.from_numpy(dequantized(blocks[32:], "Q4_0")))


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("num_rows", [1, 5, 40])
def test_products_with_blocks_are_those_of_float64(name: str, num_rows: int) -> None:
    blocks = random_blocks(name, 96, COLUMNS)
    rows = BlockRows(blocks, name)
    x = torch.randn(num_rows, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.from_numpy(dequantized(blocks, name)).double()
    linear = layer(rows)
    assert_product(linear(x), x, weight, None, rows.form, linear._library.grouped_kernel)


@pytest.mark.parametrize("name", OTHERS)
def test_other_types_are_rounded_to_8_bits_in_groups_of_32(name: str) -> None:
    """By half a step at most, and from bfloat16."""
    blocks = random_blocks(name, 40, COLUMNS)
    assert is_quantized(name)
    assert not is_exact(name)
    wanted = torch.from_numpy(dequantized(blocks, name))
    off = (weight_of(layer(BlockRows(blocks, name))) - wanted).view(40, -1, 32).abs()
    largest = wanted.view(40, -1, 32).abs().amax(dim=2, keepdim=True)
    assert bool((off <= largest * (0.51 / 127 + 2**-8)).all())


@pytest.mark.parametrize(("name", "is_whole"), [("Q4_0", True), ("Q8_0", True), ("Q4_K", False)])
def test_columns_are_moved_with_their_blocks_or_rounded(name: str, is_whole: bool) -> None:
    """Runs of 32 change places, which are whole blocks of some types."""
    blocks = random_blocks(name, 40, COLUMNS)
    columns = np.random.default_rng(0).permutation(COLUMNS // 32)[:, None] * 32 + np.arange(32)
    rows = BlockRows(blocks, name, columns=columns.ravel())
    wanted = torch.from_numpy(dequantized(blocks, name)[:, columns.ravel()])
    assert rows.is_exact is is_whole
    off = (weight_of(layer(rows)) - wanted).view(40, -1, 32).abs()
    largest = wanted.view(40, -1, 32).abs().amax(dim=2, keepdim=True)
    assert bool((off <= (0 if is_whole else largest * (0.51 / 127 + 2**-8))).all())


def test_columns_in_their_places_are_no_obstacle() -> None:
    blocks = random_blocks("Q4_K", 40, COLUMNS)
    rows = BlockRows(blocks, "Q4_K", columns=np.arange(COLUMNS))
    assert rows.is_exact
    assert torch.equal(weight_of(layer(rows)), torch.from_numpy(dequantized(blocks, "Q4_K")))


def test_blocks_that_gguf_has_quantized_are_read_alike() -> None:
    weight = np.random.default_rng(0).standard_normal((33, 64)).astype(np.float32)
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"):
        blocks = gguf.quantize(weight, gguf.GGMLQuantizationType[name])
        part = BlockRows(blocks, name).part(0, 33)
        assert isinstance(part, GroupedRows)
        assert torch.equal(weight_of(layer(BlockRows(blocks, name))), torch.from_numpy(dequantized(blocks, name)))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_types_have_no_blocks(name: str) -> None:
    assert not is_quantized(name)
