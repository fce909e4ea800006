"""Attention by matrix units (AMX): which models it takes, and that a token has the same bits in any chunk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.engine.attention.interface import AttentionSpec, LayerShape
from orcinus.engine.kernels.library import INSTRUCTION_SETS, load_library
from tests.effort import scaled
from tests.unit.engine.kernels.test_attention_bits import Tokens, native, same_bits
from tests.unit.engine.kernels.test_kernels import exact_attention

BEST = load_library()
UNITS = INSTRUCTION_SETS.index("amx")
VECTORS = INSTRUCTION_SETS.index("avx512-bf16")
SINKS = {heads: torch.linspace(-1, 3, heads) for heads in range(1, 49)}

pytestmark = pytest.mark.skipif(BEST is None or not BEST.has_matrix_units, reason="this CPU has no matrix units")


def tokens_of(heads: int, shape: LayerShape, length: int, dtype: torch.dtype = torch.bfloat16) -> Tokens:
    tokens = Tokens(dtype, length, shape)
    generator = torch.Generator().manual_seed(3)
    tokens.query = torch.randn(length, heads, shape.key_dim, generator=generator).to(dtype)
    return tokens


def test_the_library_multiplies_by_units_where_there_are_some() -> None:
    assert BEST is not None
    assert BEST.instruction_set == "amx"


@pytest.mark.parametrize(
    ("dims", "dtype", "by_units"),
    [
        ((64, 64), torch.bfloat16, True),
        ((96, 48), torch.bfloat16, True),
        ((80, 64), torch.bfloat16, False),
        ((64, 40), torch.bfloat16, False),
        ((64, 64), torch.float32, False),
    ],
)
@pytest.mark.parametrize("block_size", [32, 12])
def test_models_whose_dimensions_do_not_fit_are_left_to_vectors(
    dims: tuple[int, int], dtype: torch.dtype, by_units: bool, block_size: int
) -> None:
    """All of their tokens, single ones and those of chunks: the order of the sums tells which it was."""
    tokens, spec = Tokens(dtype, 300, LayerShape(2, *dims)), AttentionSpec(0.2)
    for ends in ([300], list(range(1, 301))):
        one, other = (
            tokens.attended(native(level), spec, ends, block_size=block_size).to(torch.bfloat16)
            for level in (UNITS, VECTORS)
        )
        assert same_bits(one, other) != by_units


@settings(max_examples=scaled(60))
@given(
    group=st.sampled_from([1, 2, 3, 5, 8, 16, 24]),
    dims=st.sampled_from([(32, 16), (64, 64), (96, 80), (128, 128), (192, 128), (256, 256)]),
    length=st.integers(2, 200) | st.sampled_from([511, 513, 600]),
    blocks=st.tuples(*[st.sampled_from([7, 16, 32, 48, 64])] * 2),
    window=st.none() | st.integers(1, 150),
    softcap=st.none() | st.just(5.0),
    has_sinks=st.booleans(),
    data=st.data(),
)
def test_chunks_begin_anywhere_and_change_no_bit(
    group: int,
    dims: tuple[int, int],
    length: int,
    blocks: tuple[int, int],
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
    data: st.DataObject,
) -> None:
    tokens = tokens_of(2 * group, LayerShape(2, *dims), length)
    spec = AttentionSpec(dims[0] ** -0.5, window, softcap, SINKS[2 * group] if has_sinks else None)
    whole = tokens.attended(native(UNITS), spec, [length], block_size=blocks[0])
    ends = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=10)))
    cut = tokens.attended(
        native(UNITS, 2), spec, [*ends, length], block_size=blocks[1], unwritten=torch.nan, has_neighbour=True
    )
    assert same_bits(cut, whole)


@pytest.mark.parametrize("group", [1, 2, 3, 16])
def test_every_token_alone_has_the_bits_that_it_has_in_the_prompt(group: int) -> None:
    tokens, spec = tokens_of(2 * group, LayerShape(2, 128, 128), 530), AttentionSpec(128**-0.5)
    whole = tokens.attended(native(UNITS), spec, [530])
    assert same_bits(tokens.attended(native(UNITS), spec, list(range(1, 531)), unwritten=torch.nan), whole)


def errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Root of the mean square, and the largest."""
    difference = found.double() - expected
    return float(difference.square().mean().sqrt()), float(difference.abs().max())


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_weights_in_bfloat16_err_no_more_than_those_of_torch(spread: float) -> None:
    """Its flash attention rounds the weights and the result, too; sharper scores make for larger weights."""
    tokens, scale = tokens_of(4, LayerShape(2, 128, 128), 600), spread * 128**-0.5
    found = tokens.attended(native(UNITS), AttentionSpec(scale), [600])
    expected = exact_attention(tokens.query, tokens.keys, tokens.values, AttentionSpec(scale))
    keys, values = (tensor.repeat_interleave(2, dim=1) for tensor in (tokens.keys, tokens.values))
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (tokens.query, keys, values))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[0].transpose(0, 1)
    for own, other in zip(errors(found, expected), errors(theirs, expected), strict=True):
        assert own <= 1.1 * other
