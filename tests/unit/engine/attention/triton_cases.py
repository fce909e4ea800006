"""The Triton backend against attention written down plainly, in float64. Run by `test_triton_attention`.

In a process of its own: whether kernels are interpreted is settled when Triton is imported. The interpreter multiplies
no bfloat16.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from orcinus.engine.attention.choice import PLAIN_LAYER, LayerKind, try_out
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerShape, batch_metadata
from orcinus.engine.attention.triton_backend import TritonBackend, keys_per_tile, split_count

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [
    pytest.mark.skipif(
        DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
        reason="needs a CUDA device, or TRITON_INTERPRET=1",
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, over NaN and over rows that nobody stores
]
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
# Of the largest value: sums in float32; weights and results in the dtype of the cache.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# What the device has decides how often keys are split: never, and as often as it goes.
SPLITS = [1, 1000]
SPANS = [(36, 37), (0, 1), (299, 300), (10, 30), (100, 170)]


def exact_attention(query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
    """One sequence, heads first, in float64; the last query is the last key's."""
    keys, values = (t.repeat_interleave(query.shape[0] // t.shape[0], dim=0) for t in (keys, values))
    scores = query @ keys.transpose(1, 2) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    position = torch.arange(keys.shape[1], device=DEVICE)
    own = position[-query.shape[1] :].unsqueeze(1)
    hidden = (position > own) | (position <= own - (spec.window or keys.shape[1]))
    scores = scores.masked_fill(hidden, -torch.inf)
    if spec.sinks is not None:
        column = spec.sinks.double().view(-1, 1, 1).expand(-1, query.shape[1], 1)
        scores = torch.cat([scores, column], dim=2)
    return torch.softmax(scores, dim=2)[..., : keys.shape[1]] @ values


class Case:
    """A step over a cache full of random numbers, in blocks that lie anywhere."""

    def __init__(
        self, shape: LayerShape, num_heads: int, block_size: int, dtype: torch.dtype, spans: list[tuple[int, int]]
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        width = max(-(-end // block_size) for _, end in spans)
        tables = np.random.default_rng(0).permutation(len(spans) * width).astype(np.int32).reshape(len(spans), width)
        self.meta: AttentionMetadata = batch_metadata(spans, tables, block_size, DEVICE)
        self.cache = TritonBackend(1).allocate(shape, tables.size, block_size, dtype, DEVICE)
        for cached in (self.cache.keys, self.cache.values):
            cached.copy_(torch.randn(cached.shape, generator=generator))
        query = torch.randn(self.meta.query_start[-1], num_heads, shape.key_dim, generator=generator)
        self.query = (2 * query).to(DEVICE, dtype)

    def expected(self, spec: AttentionSpec) -> Tensor:
        parts = []
        for i, end in enumerate(self.meta.seq_lens):
            blocks = self.meta.block_tables[i].long()
            keys, values = (c[blocks].flatten(0, 1)[:end].double() for c in (self.cache.keys, self.cache.values))
            query = self.query[self.meta.query_start[i] : self.meta.query_start[i + 1]].double()
            out = exact_attention(query.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), spec)
            parts.append(out.transpose(0, 1))
        return torch.cat(parts)

    def check(self, spec: AttentionSpec, num_multiprocessors: int) -> None:
        got = TritonBackend(num_multiprocessors).attend(self.cache, self.query, spec, self.meta)
        expected = self.expected(spec)
        assert got.dtype == self.query.dtype
        error = (got.double() - expected).abs().max() / expected.abs().max()
        assert float(error) < TOLERANCE[self.query.dtype]


SINKS = torch.tensor([0.5, -1.0, 12.0, 0.0, 3.0, -2.0], device=DEVICE)


@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(0.2),
        AttentionSpec(0.3, window=5),
        AttentionSpec(0.2, window=150),
        AttentionSpec(0.2, softcap=1.5),
        AttentionSpec(0.2, sinks=SINKS),
        AttentionSpec(0.2, window=40, softcap=3.0, sinks=SINKS),
    ],
    ids=str,
)
def test_chunks_and_single_tokens_attend_as_the_definition_says(spec: AttentionSpec) -> None:
    Case(LayerShape(2, 24, 16), 6, 16, torch.float32, SPANS).check(spec, 1)
    Case(LayerShape(2, 24, 16), 6, 16, torch.float32, SPANS[:3]).check(spec, 1000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 48, 256])
def test_any_dtype_and_any_block_size_is_served(block_size: int, dtype: torch.dtype) -> None:
    case = Case(LayerShape(1, 64, 64), 4, block_size, dtype, SPANS[2:4])
    case.check(AttentionSpec(0.125, window=100), 1)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (2, 2), (20, 1)])
def test_heads_share_their_keys_in_groups_of_any_size(num_heads: int, num_kv_heads: int) -> None:
    case = Case(LayerShape(num_kv_heads, 8, 6), num_heads, 16, torch.float32, [(40, 41), (3, 4), (5, 25)])
    for num_multiprocessors in SPLITS:
        case.check(AttentionSpec(0.3), num_multiprocessors)


def test_what_lies_behind_a_sequences_end_is_never_looked_at() -> None:
    """Stale slots of its own last block, blocks of others, and block ids behind the end of its table."""
    case = Case(LayerShape(2, 16, 16), 4, 16, torch.float32, [(19, 20), (70, 71), (3, 9)])
    spec = AttentionSpec(0.25)
    expected = [case.expected(spec)[i] for i in (0, 2)]
    for cached in (case.cache.keys, case.cache.values):
        cached[case.meta.block_tables[0, 1].long(), 4:] = torch.nan
        cached[case.meta.block_tables[2, 0].long(), 9:] = torch.nan
        cached[case.meta.block_tables[1].long()] = torch.nan
    case.meta.block_tables[0, 2:] = 2**30
    for num_multiprocessors in SPLITS:
        got = TritonBackend(num_multiprocessors).attend(case.cache, case.query, spec, case.meta)
        torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[2].double(), expected[1], rtol=1e-4, atol=1e-5)
        assert bool(got[1].isnan().all())


@pytest.mark.parametrize("window", [1, 5, 40])
def test_what_lies_behind_the_window_is_never_looked_at(window: int) -> None:
    case, spec = Case(LayerShape(2, 16, 16), 4, 4, torch.float32, SPANS), AttentionSpec(0.25, window)
    expected = case.expected(spec)
    tables, block_size = case.meta.block_tables, case.meta.block_size
    for table, (first, _) in zip(tables, SPANS, strict=True):
        for cached in (case.cache.keys, case.cache.values):
            cached[table[: max(0, first - window + 1) // block_size].long()] = torch.nan
    for num_multiprocessors in SPLITS:
        got = TritonBackend(num_multiprocessors).attend(case.cache, case.query, spec, case.meta)
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_query_may_lie_in_memory_in_any_way() -> None:
    case = Case(LayerShape(2, 16, 16), 4, 16, torch.float32, SPANS[1:4])
    spec, plain = AttentionSpec(0.25), case.query
    expected = TritonBackend(1).attend(case.cache, plain, spec, case.meta)
    heads_first = plain.transpose(0, 1).contiguous().transpose(0, 1)
    last_first = plain.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for query in (heads_first, last_first):
        assert query.stride() != plain.stride()
        assert torch.equal(TritonBackend(1).attend(case.cache, query, spec, case.meta), expected)


def test_new_keys_and_values_are_written_before_they_are_attended_to() -> None:
    case = Case(LayerShape(2, 16, 16), 4, 16, torch.float32, SPANS[1:4])
    spec, count = AttentionSpec(0.25), case.query.shape[0]
    keys, values = torch.randn(2, count, 2, 16, device=DEVICE).unbind(0)
    got = TritonBackend(1).run(case.cache, case.query, keys, values, spec=spec, meta=case.meta)
    assert torch.equal(case.cache.keys.flatten(0, 1)[case.meta.slots], keys)
    torch.testing.assert_close(got.double(), case.expected(spec), rtol=1e-4, atol=1e-5)


def test_a_step_of_single_tokens_is_the_same_whatever_the_host_thinks_of_its_lengths() -> None:
    """Graphs recorded for one step are replayed for others."""
    case = Case(LayerShape(2, 16, 16), 4, 16, torch.float32, SPANS[:3])
    spec = AttentionSpec(0.25)
    expected = TritonBackend(4).attend(case.cache, case.query, spec, case.meta)
    blind = replace(case.meta, seq_lens=[1, 1, 1], is_recorded=True)
    assert torch.equal(TritonBackend(4).attend(case.cache, case.query, spec, blind), expected)


def test_few_sequences_are_split_until_the_device_is_full_and_many_are_not() -> None:
    assert split_count(8, 528) == 32
    assert split_count(64, 528) == 8
    assert split_count(2048, 528) == 1


def test_a_backend_tries_itself_out_on_the_device_that_it_is_for() -> None:
    for spec in (AttentionSpec(0.25), AttentionSpec(0.25, window=9, softcap=20.0)):
        try_out(TritonBackend(1), DEVICE, torch.float32, LayerKind(4, LayerShape(2, 24, 16), spec), 16)
    try_out(TritonBackend(4), DEVICE, torch.float16, PLAIN_LAYER, 16)


def test_tiles_have_room_for_wide_heads() -> None:
    assert [keys_per_tile(dim, 2) for dim in (64, 128, 256, 1024)] == [128, 64, 32, 16]
