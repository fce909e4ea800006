"""Attention over the paged cache against attention written down plainly."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.attention import torch_backend as attention
from orcinus.engine.attention.torch_backend import (
    AttentionBackend,
    AttentionMetadata,
    AttentionSpec,
    LayerCache,
    LayerShape,
    NativeBackend,
    PagedAttention,
    ShapeProbe,
    TorchBackend,
    UnsupportedAttentionError,
    VarlenBackend,
    attending,
    attention_function,
    batch_metadata,
    causal_mask,
    choose_backend,
)
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import INSTRUCTION_SETS, Library, load_library

CPU = torch.device("cpu")
BLOCK = 4
HEADS, KV_HEADS, DIM, VALUE_DIM = 4, 2, 8, 6
SCALE = DIM**-0.5


class Sequence:
    """One request's queries, keys and values, whole."""

    def __init__(self, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.query = torch.randn(length, HEADS, DIM, generator=generator)
        self.keys = torch.randn(length, KV_HEADS, DIM, generator=generator)
        self.values = torch.randn(length, KV_HEADS, VALUE_DIM, generator=generator)


def plain_attention(sequence: Sequence, spec: AttentionSpec) -> Tensor:
    """One head and one query at a time, as the definition says."""
    length = sequence.query.shape[0]
    out = torch.zeros(length, HEADS, VALUE_DIM)
    for i in range(length):
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            first = 0 if spec.window is None else max(0, i + 1 - spec.window)
            scores = sequence.keys[first : i + 1, kv_head] @ sequence.query[i, head] * spec.scale
            if spec.softcap is not None:
                scores = spec.softcap * torch.tanh(scores / spec.softcap)
            if spec.sinks is not None:
                scores = torch.cat([scores, spec.sinks[head : head + 1]])
            weights = torch.softmax(scores, dim=0)[: i + 1 - first]
            out[i, head] = weights @ sequence.values[first : i + 1, kv_head]
    return out


def cpu_backends() -> Iterator[AttentionBackend]:
    """Gathering, and the native kernel with every instruction set that this machine has."""
    yield TorchBackend()
    best = load_library()
    if best is not None:
        for level in range(INSTRUCTION_SETS.index(best.instruction_set) + 1):
            yield NativeBackend(Library(library_path(), level))


every_backend = pytest.mark.parametrize("backend", list(cpu_backends()), ids=lambda backend: backend.name)


def run_step(
    backend: AttentionBackend,
    layer: LayerCache,
    sequences: list[Sequence],
    spans: list[tuple[int, int]],
    tables: np.ndarray,
    spec: AttentionSpec,
) -> list[Tensor]:
    meta = batch_metadata(spans, tables, BLOCK, CPU)
    query, keys, values = (
        torch.cat([getattr(s, name)[a:b] for s, (a, b) in zip(sequences, spans, strict=True)])
        for name in ("query", "keys", "values")
    )
    out = backend.run(layer, query, keys, values, spec=spec, meta=meta)
    return list(torch.split(out, [b - a for a, b in spans]))


def shuffled_tables(num_seqs: int, width: int) -> np.ndarray:
    blocks = np.random.default_rng(0).permutation(num_seqs * width).astype(np.int32)
    return blocks.reshape(num_seqs, width)


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


def test_decode_rows_of_very_different_lengths_do_not_pad_each_other() -> None:
    spans = [(i, i + 1) for i in (0, 2, 3, 5, 60, 61, 30)]
    meta = batch_metadata(spans, shuffled_tables(7, 16), BLOCK, CPU)
    gathers = TorchBackend()._gathers_of(meta, None)
    gathered = sum(group.blocks.numel() for group in gathers.decodes)
    needed = sum(math.ceil(length / BLOCK) for length in meta.seq_lens)
    assert sorted(row for group in gathers.decodes for row in group.rows.tolist()) == list(range(7))
    assert gathered <= 2 * needed
    assert len(gathers.decodes) == 2


def test_window_gathers_only_the_blocks_it_sees() -> None:
    meta = batch_metadata([(63, 64)], shuffled_tables(1, 16), BLOCK, CPU)
    group = TorchBackend()._gathers_of(meta, 5).decodes[0]
    assert group.blocks.tolist() == meta.block_tables[0, 14:].tolist()


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


def test_cache_memory_starts_as_zeros_in_the_dtype_asked_for() -> None:
    layer = TorchBackend().allocate(LayerShape(3, 16, 8), 5, BLOCK, torch.bfloat16, CPU)
    assert layer.keys.shape == (5, BLOCK, 3, 16)
    assert layer.values.shape == (5, BLOCK, 3, 8)
    assert layer.keys.dtype == torch.bfloat16
    assert not bool(layer.keys.any())


def test_metadata_puts_each_token_into_its_slot() -> None:
    tables = np.array([[7, 0], [3, 5]], dtype=np.int32)
    meta = batch_metadata([(2, 3), (3, 6)], tables, BLOCK, CPU)
    assert meta.slots.tolist() == [7 * 4 + 2, 3 * 4 + 3, 5 * 4 + 0, 5 * 4 + 1]
    assert meta.query_start == [0, 1, 4]
    assert meta.seq_lens == [3, 6]
    assert (meta.num_seqs, meta.num_decodes, meta.max_query_len) == (2, 1, 3)


def test_causal_mask_lines_up_with_the_last_key() -> None:
    mask = causal_mask(2, 4, 3, CPU)
    assert mask.tolist() == [[True, True, True, False], [False, True, True, True]]


class Layer(nn.Module):
    is_causal = True


def call(module: nn.Module, sequence: Sequence, **kwargs: object) -> Tensor:
    def batched(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).unsqueeze(0)

    out, weights = attention_function(
        module,
        batched(sequence.query),
        batched(sequence.keys),
        batched(sequence.values),
        None,
        **kwargs,  # type: ignore[arg-type]
    )
    assert weights is None
    return out


def test_probe_attends_causally_and_notes_the_layers_shape() -> None:
    module, sequence, probe = Layer(), Sequence(7, 3), ShapeProbe()
    with attending(probe):
        out = call(module, sequence, scaling=0.2, sliding_window=4, softcap=1.0)
    torch.testing.assert_close(out[0], plain_attention(sequence, AttentionSpec(0.2, 4, 1.0)))
    assert probe.shapes == {module: LayerShape(KV_HEADS, DIM, VALUE_DIM)}
    assert LayerShape(KV_HEADS, DIM, VALUE_DIM).elements_per_token == 2 * (8 + 6)


def test_probe_refuses_a_layer_that_runs_twice_per_token() -> None:
    module, probe = Layer(), ShapeProbe()
    with attending(probe):
        call(module, Sequence(3, 0))
        with pytest.raises(UnsupportedAttentionError, match="more than once"):
            call(module, Sequence(3, 0))


def test_attention_that_is_not_causal_is_refused() -> None:
    module = Layer()
    module.is_causal = False
    with attending(ShapeProbe()), pytest.raises(UnsupportedAttentionError, match="causal"):
        call(module, Sequence(3, 0))
    with attending(ShapeProbe()), pytest.raises(UnsupportedAttentionError, match="bias"):
        call(Layer(), Sequence(3, 0), position_bias=torch.zeros(1))


def test_varlen_backend_hands_the_cache_over_in_place() -> None:
    """Not run on a GPU here: a stand-in for torch's kernel reads the pages by what it is told."""
    sequences = [Sequence(6, 1), Sequence(9, 2)]
    for sequence in sequences:
        sequence.values = torch.randn(sequence.values.shape[0], KV_HEADS, DIM)
    backend = VarlenBackend(paged_reference, TorchBackend())
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, DIM), 8, BLOCK, torch.float32, CPU)
    tables = shuffled_tables(2, 4)
    for window in (None, 3):
        spec = AttentionSpec(SCALE, window)
        run_step(backend, layer, sequences, [(0, 5), (0, 4)], tables, spec)
        out = run_step(backend, layer, sequences, [(5, 6), (4, 9)], tables, spec)
        gathered = TorchBackend()
        expected = run_step(gathered, layer, sequences, [(5, 6), (4, 9)], tables, spec)
        torch.testing.assert_close(torch.cat(out), torch.cat(expected))


def paged_reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` promises, written down."""
    assert enable_gqa
    assert cu_seq_k is None
    assert cu_seq_q.dtype == seqused_k.dtype == block_table.dtype == torch.int32
    assert window_size[1] == 0
    assert max_k == int(seqused_k.max())
    out = []
    for i, used in enumerate(seqused_k.tolist()):
        rows = query[cu_seq_q[i] : cu_seq_q[i + 1]]
        assert rows.shape[0] <= max_q
        own = [cache[block_table[i].long()].flatten(0, 1)[:used] for cache in (keys, values)]
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1).transpose(0, 1) for t in own)
        mask = causal_mask(rows.shape[0], used, None if window_size[0] < 0 else window_size[0] + 1, CPU)
        attended = nn.functional.scaled_dot_product_attention(rows.transpose(0, 1), k, v, attn_mask=mask, scale=scale)
        out.append(attended.transpose(0, 1))
    return torch.cat(out)


def test_cpu_gathers_where_the_native_kernel_is_missing_or_has_no_such_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert type(choose_backend(CPU, torch.float16)) is TorchBackend
    monkeypatch.setattr(attention, "load_library", lambda: None)
    assert type(choose_backend(CPU, torch.bfloat16)) is TorchBackend


@pytest.mark.skipif(load_library() is None, reason="there is no native kernel here")
def test_cpu_reads_the_cache_in_place_where_the_native_kernel_is() -> None:
    assert type(choose_backend(CPU, torch.bfloat16)) is NativeBackend
    assert type(choose_backend(CPU, torch.float32)) is NativeBackend


def test_metadata_knows_the_dtypes_that_kernels_want() -> None:
    meta: AttentionMetadata = batch_metadata([(0, 1)], np.zeros((1, 1), dtype=np.int32), BLOCK, CPU)
    assert meta.slots.dtype == torch.int64
    assert meta.query_start_tensor.dtype == meta.seq_lens_tensor.dtype == torch.int32
