"""FlashAttention over the paged cache: what it is handed, and what is left to the other backend. No GPU is needed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.attention.choice import try_out
from orcinus.engine.attention.flash_backend import FlashBackend
from orcinus.engine.attention.interface import AttentionSpec, LayerCache, LayerShape, batch_metadata
from orcinus.engine.attention.torch_backend import TorchBackend
from tests.unit.engine.attention.cases import (
    CPU,
    DIM,
    HEADS,
    KV_HEADS,
    SCALE,
    Sequence,
    run_step,
    shuffled_tables,
)

PAGE = 256
SPANS = [[(0, 5), (0, 4)], [(5, 6), (4, 9)], [(6, 7), (9, 10)]]


@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_is_handed_the_cache_in_place(window: int | None) -> None:
    """Not run on a GPU here: a stand-in for torch's kernel reads the pages by what it is told."""
    sequences = [Sequence(7, 1), Sequence(10, 2)]
    for sequence in sequences:
        sequence.values = torch.randn(sequence.values.shape[0], KV_HEADS, DIM)
        for name in ("query", "keys", "values"):
            setattr(sequence, name, getattr(sequence, name).bfloat16())
    backend, gathering, spec = (
        FlashBackend(paged_reference, TorchBackend()),
        TorchBackend(),
        AttentionSpec(SCALE, window),
    )
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, DIM), 2, PAGE, torch.bfloat16, CPU)
    for spans in SPANS:
        out = run_step(backend, layer, sequences, spans, shuffled_tables(2, 1), spec, PAGE)
        expected = run_step(gathering, layer, sequences, spans, shuffled_tables(2, 1), spec, PAGE)
        torch.testing.assert_close(torch.cat(out), torch.cat(expected), rtol=2e-2, atol=2e-2)


def test_flash_attention_takes_what_it_is_tried_out_with() -> None:
    try_out(FlashBackend(paged_reference, TorchBackend()), CPU, torch.bfloat16)
    with pytest.raises(RuntimeError, match="only supports float16 and bfloat16"):
        try_out(FlashBackend(paged_reference, TorchBackend()), CPU, torch.float32)


def test_heads_of_a_group_share_the_keys_in_steps_of_single_tokens() -> None:
    """FlashAttention 2 does so only with no bound on either side."""
    windows: list[tuple[int, int]] = []

    def note(query: Tensor, *args: Any, window_size: tuple[int, int], **kwargs: Any) -> Tensor:
        windows.append(window_size)
        return paged_reference(query, *args, window_size=window_size, **kwargs)

    backend = FlashBackend(note, TorchBackend())
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, DIM), 2, PAGE, torch.bfloat16, CPU)
    query = torch.zeros(3, HEADS, DIM, dtype=torch.bfloat16)
    for spans in ([(5, 6), (4, 5)], [(5, 6), (4, 6)]):
        meta = batch_metadata(spans, shuffled_tables(2, 1), PAGE, CPU)
        for window in (None, 3):
            backend.attend(layer, query[: meta.query_start[-1]], AttentionSpec(SCALE, window), meta)
    assert windows == [(-1, -1), (2, 0), (-1, 0), (2, 0)]


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
    """Compute what `torch.nn.attention.varlen.varlen_attn` does with FlashAttention 2, and refuse what it refuses."""
    num_seqs, num_groups = len(seqused_k), query.shape[1] // keys.shape[2]
    if cu_seq_k is None:
        raise RuntimeError("cumulative sequence lengths of queries and keys must be both set or both not set")
    if any(tensor.dtype is not torch.int32 for tensor in (cu_seq_q, cu_seq_k, seqused_k, block_table)):
        raise RuntimeError("lengths and block tables must be int32")
    if cu_seq_q.shape != (num_seqs + 1,) or cu_seq_k.shape != (num_seqs + 1,) or len(block_table) != num_seqs:
        raise RuntimeError("lengths and block tables are of another number of sequences")
    if query.dtype not in (torch.float16, torch.bfloat16) or keys.dtype != query.dtype or values.dtype != query.dtype:
        raise RuntimeError("FlashAttention only supports float16 and bfloat16")
    if keys.shape[1] % PAGE or keys.shape[3] > 256 or keys.shape[3] % 8:
        raise RuntimeError("pages of 256 tokens, and heads of at most 256 numbers in eights")
    if num_groups > 1 and not enable_gqa:
        raise ValueError("expect query and key/value to have the same number of heads")
    assert max_k == int(seqused_k.max())
    out = []
    for i, used in enumerate(seqused_k.tolist()):
        rows = query[cu_seq_q[i] : cu_seq_q[i + 1]]
        assert rows.shape[0] <= max_q
        own = [cache[block_table[i].long()].flatten(0, 1)[:used] for cache in (keys, values)]
        k, v = (t.repeat_interleave(num_groups, dim=1).transpose(0, 1) for t in own)
        attended = nn.functional.scaled_dot_product_attention(
            rows.transpose(0, 1), k, v, attn_mask=seen(rows.shape[0], used, window_size), scale=scale
        )
        out.append(attended.transpose(0, 1))
    return torch.cat(out)


def seen(num_queries: int, num_keys: int, window_size: tuple[int, int]) -> Tensor:
    """(num_queries, num_keys), by the bounds before and after a query's own key; -1 is none."""
    before, after = (num_keys if size < 0 else size for size in window_size)
    distance = torch.arange(num_keys) - torch.arange(num_keys - num_queries, num_keys).unsqueeze(1)
    return (distance >= -before) & (distance <= after)


def refuse(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("this layer is not for FlashAttention")


class Noting(TorchBackend):
    num_calls = 0

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: Any) -> Tensor:
        self.num_calls += 1
        return super().attend(layer, query, spec, meta)


@pytest.mark.parametrize(
    ("spec", "key_dim", "value_dim"),
    [
        (AttentionSpec(0.3, softcap=2.0), 8, 8),
        (AttentionSpec(0.3, sinks=torch.zeros(4)), 8, 8),
        (AttentionSpec(0.3), 8, 6),
        (AttentionSpec(0.3), 20, 20),
        (AttentionSpec(0.3), 264, 264),
    ],
    ids=["softcap", "sinks", "value size", "head size", "wide heads"],
)
def test_what_flash_attention_cannot_do_goes_to_the_other_backend(
    spec: AttentionSpec, key_dim: int, value_dim: int
) -> None:
    cpu = torch.device("cpu")
    other = Noting()
    backend = FlashBackend(refuse, other)
    layer = backend.allocate(LayerShape(2, key_dim, value_dim), 2, 4, torch.float32, cpu)
    query, keys, values = torch.randn(3, 4, key_dim), torch.randn(3, 2, key_dim), torch.randn(3, 2, value_dim)
    meta = batch_metadata([(0, 3)], torch.zeros(1, 1, dtype=torch.int32).numpy(), 4, cpu)
    out = backend.run(layer, query, keys, values, spec=spec, meta=meta)
    assert other.num_calls == 1
    with pytest.raises(RuntimeError, match="on the host"):
        backend.run(layer, query, keys, values, spec=spec, meta=replace(meta, is_recorded=True))
    again = TorchBackend().run(layer, query, keys, values, spec=spec, meta=meta)
    torch.testing.assert_close(out, again)
