"""Attention over the paged cache against attention written down plainly, for every backend that a CPU has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.attention.by_token import token_by_token
from orcinus.engine.attention.interface import (
    AttentionBackend,
    AttentionMetadata,
    AttentionSpec,
    LayerShape,
    PagedLayer,
    batch_metadata,
)
from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.attention.step_context import StepContext, step_context
from tests.unit.engine.attention.cases import (
    BLOCK,
    CPU,
    DIM,
    KV_HEADS,
    SCALE,
    VALUE_DIM,
    Sequence,
    every_backend,
    plain_attention,
    run_step,
    shuffled_tables,
)


@every_backend
@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(SCALE),
        AttentionSpec(0.3, window=5),
        AttentionSpec(SCALE, window=4),
        AttentionSpec(SCALE, softcap=1.5),
        AttentionSpec(SCALE, window=3, softcap=2.0),
        AttentionSpec(SCALE, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
        AttentionSpec(SCALE, window=6, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    ],
    ids=str,
)
def test_chunks_and_single_tokens_attend_like_the_whole_sequence(
    backend: AttentionBackend, spec: AttentionSpec
) -> None:
    lengths = [3, 30, 9, 17]
    sequences = [Sequence(length, seed) for seed, length in enumerate(lengths)]
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, VALUE_DIM), 32, BLOCK, torch.float32, CPU)
    tables = shuffled_tables(4, 8)
    # Chunks of different sizes up to the last two tokens, and those one by one.
    steps = [
        [(0, 1), (0, 11), (0, 7), (0, 4)],
        [(1, 2), (28 - 17, 29), (7, 8), (4, 16)],
        [(2, 3), (29, 30), (8, 9), (16, 17)],
    ]
    parts: list[list[Tensor]] = [[] for _ in lengths]
    for spans in steps:
        order = sorted(range(4), key=lambda i: spans[i][1] - spans[i][0] > 1)
        out = run_step(backend, layer, [sequences[i] for i in order], [spans[i] for i in order], tables[order], spec)
        for i, part in zip(order, out, strict=True):
            parts[i].append(part)
    for sequence, got in zip(sequences, parts, strict=True):
        torch.testing.assert_close(torch.cat(got), plain_attention(sequence, spec), rtol=1e-4, atol=1e-5)


@every_backend
def test_another_sequences_nan_never_reaches_a_shorter_row(backend: AttentionBackend) -> None:
    healthy, broken = Sequence(2, 1), Sequence(8, 2)
    broken.values[:] = torch.nan
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, VALUE_DIM), 4, BLOCK, torch.float32, CPU)
    tables = np.array([[2, 0], [0, 1]], dtype=np.int32)  # the healthy row's padding names the broken one's block
    spec = AttentionSpec(SCALE)
    run_step(backend, layer, [healthy, broken], [(0, 1), (0, 7)], tables, spec)
    out = run_step(backend, layer, [healthy, broken], [(1, 2), (7, 8)], tables, spec)
    torch.testing.assert_close(out[0], plain_attention(healthy, spec)[1:])
    assert bool(out[1].isnan().all())


@every_backend
@pytest.mark.parametrize("window", [1, 2, 5, 6, 7, 8, 70])
def test_what_lies_behind_the_window_may_be_anything(backend: AttentionBackend, window: int) -> None:
    """Blocks that no token of the step sees have become other sequences', whose numbers may be none."""
    lengths, spec = [100, 31, 90, 130], AttentionSpec(SCALE, window)
    sequences = [Sequence(length, seed) for seed, length in enumerate(lengths)]
    width = 33
    tables = shuffled_tables(4, width)
    spans = [(99, 100), (30, 31), (62, 90), (60, 130)]
    outs = []
    for is_broken in (False, True):
        layer = backend.allocate(LayerShape(KV_HEADS, DIM, VALUE_DIM), 4 * width, BLOCK, torch.float32, CPU)
        run_step(backend, layer, sequences, [(0, first) for first, _ in spans], tables, spec)
        if is_broken:
            kept = {
                tables[i, b] for i, (a, e) in enumerate(spans) for b in range(max(0, a - window + 1) // BLOCK, width)
            }
            stale = [block for block in range(4 * width) if block not in kept]
            assert stale
            layer.keys[stale] = layer.values[stale] = torch.nan
        outs.append(torch.cat(run_step(backend, layer, sequences, spans, tables, spec)))
    assert torch.equal(*outs)
    wanted = [plain_attention(s, spec)[a:e] for s, (a, e) in zip(sequences, spans, strict=True)]
    torch.testing.assert_close(outs[1], torch.cat(wanted), rtol=1e-4, atol=1e-5)


@every_backend
def test_a_layer_that_shares_anothers_keys_reads_them_where_that_one_stored_them(backend: AttentionBackend) -> None:
    own: nn.Module = nn.Identity()
    reader: nn.Module = nn.Identity()
    sequence, spec = Sequence(9, 1), AttentionSpec(SCALE)
    cache = backend.allocate(LayerShape(KV_HEADS, DIM, VALUE_DIM), 3, BLOCK, torch.float32, CPU)
    layers = {own: PagedLayer(cache), reader: PagedLayer(cache, only_reads=True)}
    attention = PagedAttention(backend, layers)
    other = torch.full_like(sequence.keys, torch.nan), torch.full_like(sequence.values, torch.nan)
    for first, end in ((0, 8), (8, 9)):
        meta = batch_metadata([(first, end)], np.array([[2, 0, 1]], dtype=np.int32), BLOCK, CPU)
        query, keys, values = (t[first:end] for t in (sequence.query, sequence.keys, sequence.values))
        with step_context(StepContext(attention, (meta,))):
            stored = attention(own, query, keys, values, spec)
            read = attention(reader, query, other[0][first:end], other[1][first:end], spec)
        assert torch.equal(stored, read)
        torch.testing.assert_close(read, plain_attention(sequence, spec)[first:end], rtol=1e-4, atol=1e-5)


@every_backend
def test_layers_of_several_groups_alternate_with_block_tables_of_their_own(backend: AttentionBackend) -> None:
    modules: list[nn.Module] = [nn.Identity() for _ in range(4)]
    specs = [AttentionSpec(SCALE), AttentionSpec(SCALE, window=5)] * 2
    layers = {
        module: PagedLayer(backend.allocate(LayerShape(KV_HEADS, DIM, VALUE_DIM), 8, BLOCK, torch.float32, CPU), i % 2)
        for i, module in enumerate(modules)
    }
    for each in (backend, token_by_token(backend)):
        attention = PagedAttention(each, layers)
        sequences = [Sequence(20, seed) for seed in range(4)]
        for first, end in ((0, 17), (17, 18), (18, 20)):
            whole = batch_metadata([(first, end)], np.array([[3, 1, 0, 2, 5]], dtype=np.int32), BLOCK, CPU)
            windowed = batch_metadata([(first, end)], np.array([[7, 6, 4, 2, 0]], dtype=np.int32), BLOCK, CPU)
            with step_context(StepContext(attention, (whole, replace(windowed, group=1)))):
                for layer, sequence, spec in zip(modules, sequences, specs, strict=True):
                    query, keys, values = (t[first:end] for t in (sequence.query, sequence.keys, sequence.values))
                    out = attention(layer, query, keys, values, spec)
                    expected = plain_attention(sequence, spec)[first:end]
                    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@every_backend
@pytest.mark.parametrize("spec", [AttentionSpec(SCALE), AttentionSpec(SCALE, window=5)], ids=str)
def test_what_lies_behind_a_sequences_end_may_be_anything_unless_the_backend_reads_it(
    backend: AttentionBackend, spec: AttentionSpec
) -> None:
    """Every row of the cache is broken that no sequence has written: in blocks of others, and in its own last one."""
    lengths = [2, 31, 9, 70]
    sequences = [Sequence(length, seed) for seed, length in enumerate(lengths)]
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, VALUE_DIM), 4 * 18, BLOCK, torch.float32, CPU)
    layer.keys.fill_(torch.nan)
    layer.values.fill_(torch.nan)
    tables = shuffled_tables(4, 18)
    spans = [[(0, 1), (0, 20), (0, 7), (0, 50)], [(1, 2), (20, 30), (7, 8), (50, 69)], [(n - 1, n) for n in lengths]]
    outs = []
    for step in spans[:2]:
        order = sorted(range(4), key=lambda i: step[i][1] - step[i][0] > 1)
        run_step(backend, layer, [sequences[i] for i in order], [step[i] for i in order], tables[order], spec)
    outs = run_step(backend, layer, sequences, spans[2], tables, spec)
    is_right = []
    for sequence, out in zip(sequences, outs, strict=True):
        is_right.append(torch.allclose(out, plain_attention(sequence, spec)[-1:], rtol=1e-4, atol=1e-5))
    assert all(is_right) != backend.reads_foreign_rows


@every_backend
def test_scrubbed_blocks_serve_the_next_sequence(backend: AttentionBackend) -> None:
    broken, healthy = Sequence(8, 1), Sequence(6, 2)
    broken.values[:], broken.keys[:] = torch.nan, torch.inf
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, VALUE_DIM), 2, BLOCK, torch.float32, CPU)
    tables = np.array([[0, 1]], dtype=np.int32)
    spec = AttentionSpec(SCALE)
    run_step(backend, layer, [broken], [(0, 8)], tables, spec)
    PagedAttention(backend, {nn.Identity(): PagedLayer(layer)}).scrub(torch.tensor([0, 1]))
    run_step(backend, layer, [healthy], [(0, 5)], tables, spec)
    out = run_step(backend, layer, [healthy], [(5, 6)], tables, spec)
    torch.testing.assert_close(out[0], plain_attention(healthy, spec)[5:])


def test_metadata_puts_each_token_into_its_slot() -> None:
    tables = np.array([[7, 0], [3, 5]], dtype=np.int32)
    meta = batch_metadata([(2, 3), (3, 6)], tables, BLOCK, CPU)
    assert meta.slots.tolist() == [7 * 4 + 2, 3 * 4 + 3, 5 * 4 + 0, 5 * 4 + 1]
    assert meta.query_start == [0, 1, 4]
    assert meta.seq_lens == [3, 6]
    assert (meta.num_seqs, meta.num_decodes, meta.max_query_len) == (2, 1, 3)


def test_metadata_knows_the_dtypes_that_kernels_want() -> None:
    meta: AttentionMetadata = batch_metadata([(0, 1)], np.zeros((1, 1), dtype=np.int32), BLOCK, CPU)
    assert meta.slots.dtype == torch.int64
    assert meta.query_start_tensor.dtype == meta.seq_lens_tensor.dtype == torch.int32
