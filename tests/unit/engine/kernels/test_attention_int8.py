"""Attention over a cache in 8 bits: what is stored, what is made of it, and that nothing but the sequence has a say."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.engine.attention.interface import AttentionSpec, LayerCache, LayerShape, batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import INSTRUCTION_SETS, Library, load_library
from tests.effort import scaled, slow_but_for
from tests.unit.engine.kernels.test_attention_bits import DTYPES, LENGTH, SPECS, Tokens, same_bits
from tests.unit.engine.kernels.test_kernels import exact_attention

CPU = torch.device("cpu")
BEST = load_library()
HIGHEST = -1 if BEST is None else INSTRUCTION_SETS.index(BEST.instruction_set)
LEVELS = slow_but_for(range(HIGHEST + 1), *range(HIGHEST, HIGHEST + (BEST is not None)))
# Of the largest value, against float64 of what is stored: queries and weights are rounded to 16 bits, then the result.
TOLERANCE = {torch.float32: 4e-4, torch.bfloat16: 6e-3}

pytestmark = pytest.mark.skipif(BEST is None, reason="there is no native kernel here")


def in_8_bits(level: int, threads: int = 1) -> NativeBackend:
    backend = NativeBackend(Library(library_path(), level), stores_int8=True)
    backend.library.use_threads(threads, own=True)
    return backend


def hadamard(size: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def rotated(keys: Tensor) -> Tensor:
    """Keys, or back again, of runs of as many numbers as the largest power of two that divides their dimension."""
    size = keys.shape[-1] & -keys.shape[-1]
    return (keys.view(*keys.shape[:-1], -1, size) @ hadamard(size)).view(keys.shape)


def stored(cached: Tensor, block_size: int, dim: int) -> tuple[Tensor, Tensor]:
    """Bytes (num_blocks, heads, block_size * dim) and scales (num_blocks, heads, block_size)."""
    numbers, scales = torch.split(cached, [block_size * dim, 2 * block_size], dim=-1)
    return numbers, scales.contiguous().view(torch.bfloat16).double()


def keys_of(layer: LayerCache, block_size: int, dim: int) -> Tensor:
    """What a layer's keys stand for: (num_blocks * block_size, heads, dim)."""
    numbers, scales = stored(layer.keys, block_size, dim)
    lanes = numbers.reshape(*numbers.shape[:2], dim // 4, block_size, 4).permute(0, 3, 1, 2, 4).flatten(-2)
    keys = (lanes.double() - 128) * scales.transpose(1, 2).unsqueeze(-1)
    return rotated(keys).flatten(0, 1) / (dim & -dim)


def values_of(layer: LayerCache, block_size: int, dim: int) -> Tensor:
    numbers, scales = stored(layer.values, block_size, dim)
    lanes = numbers.view(torch.int8).reshape(*numbers.shape[:2], block_size // 4, dim, 4)
    lanes = lanes.permute(0, 2, 4, 1, 3).flatten(1, 2)
    return (lanes.double() * scales.transpose(1, 2).unsqueeze(-1)).flatten(0, 1)


def written(tokens: Tokens, level: int, block_size: int, ends: Sequence[int]) -> tuple[LayerCache, Tensor]:
    """The cache of a sequence whose blocks lie in their order, and what its tokens attended to."""
    backend, width = in_8_bits(level), -(-tokens.length // block_size)
    layer = backend.allocate(tokens.shape, width, block_size, tokens.dtype, CPU)
    table, parts = np.arange(width, dtype=np.int32).reshape(1, -1), []
    for first, end in zip([0, *ends], ends, strict=False):
        rows = [tensor[first:end] for tensor in (tokens.query, tokens.keys, tokens.values)]
        meta = batch_metadata([(first, end)], table, block_size, CPU)
        parts.append(backend.run(layer, *rows, spec=AttentionSpec(0.2), meta=meta))
    return layer, torch.cat(parts)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dims", "block_size"), [((64, 64), 64), ((128, 96), 16), ((80, 48), 32), ((512, 16), 128)])
def test_a_number_is_stored_to_half_a_step_of_its_token_and_head(
    level: int, dtype: torch.dtype, dims: tuple[int, int], block_size: int
) -> None:
    tokens = Tokens(dtype, 150, LayerShape(2, *dims))
    tokens.keys[7] *= 1e4
    tokens.values[8] *= 1e-4
    tokens.values[9] = 0
    layer, _ = written(tokens, level, block_size, [150])
    size = dims[0] & -dims[0]
    keys, values = rotated(tokens.keys.double()), tokens.values.double()
    for exact, found in (
        (keys, rotated(keys_of(layer, block_size, dims[0])[:150])),
        (values, values_of(layer, block_size, dims[1])[:150]),
    ):
        step = exact.abs().amax(dim=-1, keepdim=True) / 127 * (1 + 2**-7)  # scales are rounded up to bfloat16
        assert bool(((exact - found).abs() <= 0.5001 * step + 1e-5 * step * size).all())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_stored_of_a_token_depends_on_that_token_alone(level: int, dtype: torch.dtype) -> None:
    tokens = Tokens(dtype, 200, LayerShape(2, 64, 64))
    whole, _ = written(tokens, level, 64, [200])
    for ends in ([1, 2, 3, 70, 71, 130, 200], [*range(1, 201)]):
        cut, _ = written(tokens, level, 64, ends)
        assert torch.equal(cut.keys, whole.keys)
        assert torch.equal(cut.values, whole.values)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=scaled(25))
@given(
    dims=st.sampled_from([(64, 64), (128, 128), (80, 48), (256, 32), (16, 112)]),
    length=st.integers(1, 200) | st.sampled_from([511, 513, 700]),
    block_size=st.sampled_from([16, 48, 64, 128]),
    group=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
)
def test_results_are_those_of_what_is_stored(
    level: int, dims: tuple[int, int], length: int, block_size: int, group: int, dtype: torch.dtype
) -> None:
    tokens = Tokens(dtype, length, LayerShape(2, *dims))
    tokens.query = torch.randn(length, 2 * group, dims[0], generator=torch.Generator().manual_seed(3)).to(dtype)
    layer, found = written(tokens, level, block_size, [length])
    keys, values = keys_of(layer, block_size, dims[0])[:length], values_of(layer, block_size, dims[1])[:length]
    expected = exact_attention(tokens.query, keys, values, AttentionSpec(0.2))
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_has_the_same_bits_in_any_chunk_and_part(level: int, spec: AttentionSpec, dtype: torch.dtype) -> None:
    tokens = Tokens(dtype)
    whole = tokens.attended(in_8_bits(level), spec, [LENGTH])
    alone = [1, 2, 63, 64, 65, 511, 512, 513, 640, 1023, 1024, 1025, LENGTH - 1, LENGTH]
    for ends in (alone, [7, 500, 504, 520, 1020, 1030, LENGTH], [LENGTH - 3, LENGTH]):
        for threads in (1, 3):
            found = tokens.attended(in_8_bits(level, threads), spec, ends, unwritten=255, has_neighbour=True)
            assert same_bits(found, whole)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=scaled(15))
@given(
    spec=st.sampled_from(list(SPECS.values())),
    ends=st.sets(st.integers(1, LENGTH - 1), max_size=8),
    block_sizes=st.tuples(*[st.sampled_from([16, 48, 64, 128])] * 2),
    dims=st.sampled_from([(48, 32), (64, 32), (128, 128), (80, 64), (192, 128)]),
    dtype=st.sampled_from(DTYPES),
)
def test_neither_the_chunks_nor_the_blocks_have_a_say(
    level: int,
    spec: AttentionSpec,
    ends: set[int],
    block_sizes: tuple[int, int],
    dims: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    tokens = Tokens(dtype, shape=LayerShape(2, *dims))
    one, other = block_sizes
    whole = tokens.attended(in_8_bits(level), spec, [LENGTH], block_size=one)
    cut = tokens.attended(
        in_8_bits(level, 2), spec, [*sorted(ends), LENGTH], block_size=other, unwritten=255, has_neighbour=True
    )
    assert same_bits(whole, cut)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("group", [1, 2, 3, 16])
def test_every_token_alone_has_the_bits_that_it_has_in_the_prompt(level: int, group: int) -> None:
    tokens, spec = Tokens(torch.bfloat16, 300, LayerShape(2, 128, 128)), AttentionSpec(128**-0.5)
    tokens.query = torch.randn(300, 2 * group, 128, generator=torch.Generator().manual_seed(3)).bfloat16()
    whole = tokens.attended(in_8_bits(level), spec, [300])
    assert same_bits(tokens.attended(in_8_bits(level), spec, list(range(1, 301)), unwritten=255), whole)


@pytest.mark.skipif(BEST is None or not BEST.has_matrix_units, reason="this CPU has no matrix units")
@pytest.mark.parametrize("dims", [(64, 64), (128, 48), (192, 128)])
def test_matrix_units_and_vectors_compute_the_same_bits(dims: tuple[int, int]) -> None:
    """So that each does the steps that it is faster at."""
    tokens, spec = Tokens(torch.bfloat16, 300, LayerShape(2, *dims)), SPECS["window"]
    units, vectors = (INSTRUCTION_SETS.index(name) for name in ("amx", "avx512-bf16"))
    by_units, by_vectors = (tokens.attended(in_8_bits(level), spec, [300]) for level in (units, vectors))
    assert same_bits(by_units, by_vectors)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_that_is_not_finite_changes_nothing_for_those_before_it(
    level: int, bad: float, dtype: torch.dtype
) -> None:
    """Nor for those whose window it has left."""
    spec, place = SPECS["window"], 97
    sound, broken = Tokens(dtype, 300), Tokens(dtype, 300)
    for tensor in (broken.query, broken.keys, broken.values):
        tensor[place] = bad
    wanted = sound.attended(in_8_bits(level), spec, [300])
    for ends in ([300], [97, 98, 150, 167, 168, 300]):
        found = broken.attended(in_8_bits(level), spec, ends)
        assert same_bits(found[:place], wanted[:place])
        assert bool(found[place : place + 70].isnan().all())
        assert same_bits(found[place + 70 :], wanted[place + 70 :])


@pytest.mark.parametrize("name", ["keys", "values"])
def test_a_key_or_a_value_that_is_not_finite_is_seen(name: str) -> None:
    """It must not come out as a number that looks like one: the request is to fail."""
    tokens = Tokens(torch.bfloat16, 100)
    getattr(tokens, name)[50, :, 3] = torch.nan
    found = tokens.attended(in_8_bits(HIGHEST), SPECS["plain"], [100])
    assert bool(found[:50].isfinite().all())
    assert bool(found[50:].isnan().all())


@pytest.mark.parametrize("level", LEVELS)
def test_one_large_channel_of_keys_does_not_blur_the_others(level: int) -> None:
    """Some models have channels of keys that are many times as large as the others, as a bias makes them."""
    tokens = Tokens(torch.bfloat16, 200, LayerShape(2, 128, 128))
    tokens.keys[:, :, 5] += 60.0
    layer, _ = written(tokens, level, 64, [200])
    error = (keys_of(layer, 64, 128)[:200] - tokens.keys.double()).square().mean().sqrt()
    assert float(error) < 0.025  # a step of 60 / 127 would make it 0.14


def test_blocks_of_a_request_that_went_wrong_are_made_zeros() -> None:
    tokens = Tokens(torch.bfloat16, 64)
    tokens.keys[3], tokens.values[4] = torch.nan, torch.inf
    layer, _ = written(tokens, HIGHEST, 64, [64])
    in_8_bits(HIGHEST).scrub(layer, torch.tensor([0]))
    assert not layer.keys.any()
    assert not layer.values.any()
