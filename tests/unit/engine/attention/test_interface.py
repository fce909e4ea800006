"""Attention over the paged cache against attention written down plainly, for every backend that a CPU has."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.attention.interface import (
    AttentionBackend,
    AttentionMetadata,
    AttentionSpec,
    LayerShape,
    batch_metadata,
)
from orcinus.engine.attention.serving import PagedAttention
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
def test_scrubbed_blocks_serve_the_next_sequence(backend: AttentionBackend) -> None:
    broken, healthy = Sequence(8, 1), Sequence(6, 2)
    broken.values[:], broken.keys[:] = torch.nan, torch.inf
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, VALUE_DIM), 2, BLOCK, torch.float32, CPU)
    tables = np.array([[0, 1]], dtype=np.int32)
    spec = AttentionSpec(SCALE)
    run_step(backend, layer, [broken], [(0, 8)], tables, spec)
    PagedAttention(backend, {nn.Identity(): layer}).scrub(torch.tensor([0, 1]))
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
