"""The native attention kernel gives a token the same bits, however the work is cut and whatever else is in memory."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.engine.attention.interface import AttentionSpec, LayerShape, batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import INSTRUCTION_SETS, Library, load_library
from tests.effort import scaled, slow_but_for

CPU = torch.device("cpu")
BEST = load_library()
HIGHEST = -1 if BEST is None else INSTRUCTION_SETS.index(BEST.instruction_set)
LEVELS = slow_but_for(range(HIGHEST + 1), *range(HIGHEST, HIGHEST + (BEST is not None)))
DTYPES = (torch.float32, torch.bfloat16)
HEADS = 4
SHAPE = LayerShape(2, 64, 32)  # what every instruction set takes
LENGTH = 1100
SPECS = {
    "plain": AttentionSpec(0.2),
    "window": AttentionSpec(0.2, window=70),
    "long window": AttentionSpec(0.2, window=600, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "capped": AttentionSpec(0.2, softcap=5.0, sinks=torch.tensor([9.0, -1.0, 2.0, 0.0])),
}

pytestmark = pytest.mark.skipif(BEST is None, reason="there is no native kernel here")


class Tokens:
    """Queries, keys and values of one sequence."""

    def __init__(
        self,
        dtype: torch.dtype,
        length: int = LENGTH,
        shape: LayerShape = SHAPE,
        seed: int = 1,
        *,
        num_heads: int = HEADS,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(heads: int, dim: int) -> Tensor:
            return torch.randn(length, heads, dim, generator=generator).to(dtype)

        self.length, self.shape, self.dtype = length, shape, dtype
        self.query = normal(num_heads, shape.key_dim)
        self.keys = normal(shape.num_kv_heads, shape.key_dim)
        self.values = normal(shape.num_kv_heads, shape.value_dim)

    def part(self, first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of some tokens."""
        return self.query[first:end], self.keys[first:end], self.values[first:end]

    def attended(
        self,
        backend: NativeBackend,
        spec: AttentionSpec,
        ends: Sequence[int],
        *,
        block_size: int = 64,
        unwritten: float = 0.0,
        has_neighbour: bool = False,
    ) -> Tensor:
        """The sequence computed up to each of these positions in turn, over memory that holds `unwritten`."""
        width = -(-self.length // block_size)
        layer = backend.allocate(self.shape, 2 * width, block_size, self.dtype, CPU)
        layer.keys.fill_(unwritten)
        layer.values.fill_(unwritten)
        tables = np.random.default_rng(0).permutation(2 * width).astype(np.int32).reshape(2, width)
        parts = []
        for first, end in zip([0, *ends], ends, strict=False):
            spans = [(0, 1), (first, end)] if has_neighbour else [(first, end)]
            rows = [
                torch.cat([tensor[-1:], tensor[first:end]]) if has_neighbour else tensor[first:end]
                for tensor in (self.query, self.keys, self.values)
            ]
            meta = batch_metadata(spans, tables[-len(spans) :], block_size, CPU)
            parts.append(backend.run(layer, *rows, spec=spec, meta=meta)[-(end - first) :])
        return torch.cat(parts)


def native(level: int, threads: int = 1) -> NativeBackend:
    backend = NativeBackend(Library(library_path(), level))
    backend.library.use_threads(threads, own=True)
    return backend


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Zeros with another sign are others; every NaN is the same."""
    integers = torch.int32 if one.dtype is torch.float32 else torch.int16
    equal = (one.view(integers) == other.view(integers)) | (one.isnan() & other.isnan())
    return bool(equal.all())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_has_the_same_bits_in_any_chunk_and_part(level: int, spec: AttentionSpec, dtype: torch.dtype) -> None:
    tokens = Tokens(dtype)
    whole = tokens.attended(native(level), spec, [LENGTH])
    alone = [1, 2, 63, 64, 65, 511, 512, 513, 640, 1023, 1024, 1025, LENGTH - 1, LENGTH]
    for ends in (alone, [7, 500, 504, 520, 1020, 1030, LENGTH], [LENGTH - 3, LENGTH]):
        for threads in (1, 3):
            backend = native(level, threads)
            found = tokens.attended(backend, spec, ends, unwritten=torch.nan, has_neighbour=True)
            assert same_bits(found, whole)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=scaled(15))
@given(
    spec=st.sampled_from(list(SPECS.values())),
    ends=st.sets(st.integers(1, LENGTH - 1), max_size=8),
    block_sizes=st.tuples(*[st.sampled_from([1, 5, 16, 20, 48, 64, 128])] * 2),
    dims=st.sampled_from([(48, 32), (64, 32), (128, 128), (80, 64), (33, 47)]),
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
    whole = tokens.attended(native(level), spec, [LENGTH], block_size=one)
    cut = tokens.attended(
        native(level, 2), spec, [*sorted(ends), LENGTH], block_size=other, unwritten=torch.inf, has_neighbour=True
    )
    assert same_bits(whole, cut)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_have_the_bits_together_that_each_has_alone(
    level: int, spec: AttentionSpec, dtype: torch.dtype, threads: int
) -> None:
    """Where there are many, several heads of one are read together; one has a number that is not finite."""
    shape, block_size = LayerShape(8, 64, 32), 64
    sinks = None if spec.sinks is None else spec.sinks.repeat(4)
    spec = AttentionSpec(spec.scale, window=spec.window, softcap=spec.softcap, sinks=sinks)
    spans = [(2, 3), (63, 64), (64, 65), (125, 130), (199, 200), (500, 513), (700, 701), (1090, 1100), (40, 300)]
    sequences = [Tokens(dtype, end, shape, seed, num_heads=16) for seed, (_, end) in enumerate(spans)]
    sequences[4].values[150, 5] = torch.nan
    widths = [-(-end // block_size) for _, end in spans]
    blocks = np.random.default_rng(0).permutation(sum(widths)).astype(np.int32)
    tables = np.zeros((len(spans), max(widths)), dtype=np.int32)
    for row, own in zip(tables, np.split(blocks, np.cumsum(widths)[:-1]), strict=True):
        row[: len(own)] = own
    backend = native(level, threads)
    layer = backend.allocate(shape, sum(widths), block_size, dtype, CPU)

    def run(chosen: list[int], part: Sequence[tuple[int, int]]) -> Tensor:
        meta = batch_metadata(part, tables[chosen], block_size, CPU)
        rows = [sequences[i].part(first, end) for i, (first, end) in zip(chosen, part, strict=True)]
        query, keys, values = (torch.cat(tensors) for tensors in zip(*rows, strict=True))
        return backend.run(layer, query, keys, values, spec=spec, meta=meta)

    for i, (first, _) in enumerate(spans):
        run([i], [(0, first)])
    together = run([*range(len(spans))], spans)
    alone = torch.cat([run([i], [span]) for i, span in enumerate(spans)])
    assert same_bits(together, alone)
    assert together.isnan().any()


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
    wanted = sound.attended(native(level), spec, [300])
    for ends in ([300], [97, 98, 150, 167, 168, 300]):
        found = broken.attended(native(level), spec, ends)
        assert same_bits(found[:place], wanted[:place])
        assert bool(found[place : place + 70].isnan().all())
        assert same_bits(found[place + 70 :], wanted[place + 70 :])


@pytest.mark.parametrize("level", LEVELS)
def test_weights_and_sums_too_small_for_full_precision_are_the_same_in_any_chunk(level: int) -> None:
    """Keys far behind the best one add next to nothing, or -0."""
    tokens = Tokens(torch.bfloat16, 200)
    tokens.values *= 1e-37
    tokens.keys *= torch.linspace(-30, 30, 200).view(-1, 1, 1).bfloat16()
    whole = tokens.attended(native(level), SPECS["plain"], [200])
    assert same_bits(tokens.attended(native(level), SPECS["plain"], [*range(1, 201)], unwritten=-1.0), whole)
