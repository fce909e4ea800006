"""FlashAttention over the paged cache: what it is handed, and what is left to the other backend. No GPU is needed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.attention.dense import causal_mask
from orcinus.engine.attention.flash_backend import FlashBackend
from orcinus.engine.attention.interface import AttentionSpec, LayerCache, LayerShape, batch_metadata
from orcinus.engine.attention.torch_backend import TorchBackend
from tests.unit.engine.attention.cases import (
    BLOCK,
    CPU,
    DIM,
    HEADS,
    KV_HEADS,
    SCALE,
    Sequence,
    run_step,
    shuffled_tables,
)


def test_flash_attention_reads_hands_the_cache_over_in_place() -> None:
    """Not run on a GPU here: a stand-in for torch's kernel reads the pages by what it is told."""
    sequences = [Sequence(6, 1), Sequence(9, 2)]
    for sequence in sequences:
        sequence.values = torch.randn(sequence.values.shape[0], KV_HEADS, DIM)
    backend = FlashBackend(paged_reference, TorchBackend())
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


def refuse(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("this layer is not for FlashAttention")


class Noting(TorchBackend):
    num_calls = 0

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: Any) -> Tensor:
        self.num_calls += 1
        return super().attend(layer, query, spec, meta)


@pytest.mark.parametrize(
    ("spec", "value_dim"),
    [
        (AttentionSpec(0.3, softcap=2.0), 8),
        (AttentionSpec(0.3, sinks=torch.zeros(4)), 8),
        (AttentionSpec(0.3), 6),
    ],
    ids=["softcap", "sinks", "value size"],
)
def test_what_flash_attention_cannot_do_goes_to_the_other_backend(spec: AttentionSpec, value_dim: int) -> None:
    cpu = torch.device("cpu")
    other = Noting()
    backend = FlashBackend(refuse, other)
    layer = backend.allocate(LayerShape(2, 8, value_dim), 2, 4, torch.float32, cpu)
    query, keys, values = torch.randn(3, 4, 8), torch.randn(3, 2, 8), torch.randn(3, 2, value_dim)
    meta = batch_metadata([(0, 3)], torch.zeros(1, 1, dtype=torch.int32).numpy(), 4, cpu)
    out = backend.run(layer, query, keys, values, spec=spec, meta=meta)
    assert other.num_calls == 1
    with pytest.raises(RuntimeError, match="on the host"):
        backend.run(layer, query, keys, values, spec=spec, meta=replace(meta, is_recorded=True))
    again = TorchBackend().run(layer, query, keys, values, spec=spec, meta=meta)
    torch.testing.assert_close(out, again)
