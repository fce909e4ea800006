"""FlashAttention over the paged cache: what it is handed, and what is left to the other backend. No GPU is needed.

torch's own `varlen_attn` is called; below it stands `FlashAttention2`, which refuses what the kernel refuses.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orcinus.engine.attention.flash_backend import FlashBackend, paged_varlen_attn
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache, LayerShape, batch_metadata
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
from tests.unit.engine.attention.flash_attention_2 import PAGE, FlashAttention2, flash_attention_2

SPANS = [[(0, 5), (0, 300)], [(5, 6), (300, 309)], [(6, 7), (309, 310)]]


@pytest.fixture
def kernel() -> Iterator[FlashAttention2]:
    with flash_attention_2() as kernel:
        yield kernel


@pytest.fixture
def backend(kernel: FlashAttention2) -> FlashBackend:
    varlen_attn = paged_varlen_attn()
    if varlen_attn is None:
        pytest.skip("this torch's varlen_attn takes no block table")
    return FlashBackend(varlen_attn, TorchBackend())


@pytest.mark.parametrize("window", [None, 3, 280, 5000])
def test_flash_attention_is_handed_the_cache_in_place(window: int | None, backend: FlashBackend) -> None:
    sequences = [Sequence(7, 1), Sequence(310, 2)]
    for sequence in sequences:
        sequence.values = torch.randn(sequence.values.shape[0], KV_HEADS, DIM)
        for name in ("query", "keys", "values"):
            setattr(sequence, name, getattr(sequence, name).bfloat16())
    gathering, spec = TorchBackend(), AttentionSpec(SCALE, window)
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, DIM), 4, PAGE, torch.bfloat16, CPU)
    for spans in SPANS:
        out = run_step(backend, layer, sequences, spans, shuffled_tables(2, 2), spec, PAGE)
        expected = run_step(gathering, layer, sequences, spans, shuffled_tables(2, 2), spec, PAGE)
        torch.testing.assert_close(torch.cat(out), torch.cat(expected), rtol=2e-2, atol=2e-2)


def test_flash_attention_reads_a_query_that_lies_in_memory_in_any_way(backend: FlashBackend) -> None:
    """The kernel itself refuses one whose numbers do not lie side by side."""
    meta = batch_metadata([(5, 6), (4, 6)], shuffled_tables(2, 1), PAGE, CPU)
    layer = layer_of(backend, 2)
    plain = torch.randn(3, HEADS, DIM).bfloat16()
    expected = backend.attend(layer, plain, AttentionSpec(SCALE), meta)
    last_first = plain.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert last_first.stride(2) != 1
    assert torch.equal(backend.attend(layer, last_first, AttentionSpec(SCALE), meta), expected)


@pytest.mark.parametrize(
    ("window", "expected"), [(None, [True, False]), (3, [False, False]), (6, [True, False])], ids=str
)
def test_heads_of_a_group_share_the_keys_in_steps_of_single_tokens(
    window: int | None, expected: list[bool], backend: FlashBackend, kernel: FlashAttention2
) -> None:
    """The kernel does so only with no bound on either side: a window that hides nothing is none."""
    layer, query = layer_of(backend, 2), torch.zeros(3, HEADS, DIM, dtype=torch.bfloat16)
    for spans in ([(5, 6), (4, 5)], [(5, 6), (4, 6)]):
        meta = batch_metadata(spans, shuffled_tables(2, 1), PAGE, CPU)
        backend.attend(layer, query[: meta.query_start[-1]], AttentionSpec(SCALE, window), meta)
    assert kernel.is_packed == expected


def test_a_recorded_step_serves_any_lengths_up_to_those_it_was_recorded_with(backend: FlashBackend) -> None:
    layer, query = layer_of(backend, 4), torch.randn(2, HEADS, DIM).bfloat16()
    meta = batch_metadata([(299, 300), (4, 5)], shuffled_tables(2, 2), PAGE, CPU)
    recorded = replace(meta, seq_lens=[512] * 2, max_seq_len=512, is_recorded=True)
    for window in (None, 100, 400):
        spec = AttentionSpec(SCALE, window)
        torch.testing.assert_close(
            backend.attend(layer, query, spec, recorded), backend.attend(layer, query, spec, meta)
        )


REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("both cumulative", {"cu_seq_k": None}),
    ("cu_seqlens_q must have dtype", {"cu_seq_q": torch.tensor([0, 1])}),
    ("cu_seqlens_k must have shape", {"cu_seq_k": torch.tensor([0, 1, 2], dtype=torch.int32)}),
    ("fp16 and bf16", {"query": torch.zeros(1, HEADS, DIM)}),
    ("same dtype", {"query": torch.zeros(1, HEADS, DIM, dtype=torch.float16)}),
    ("contiguous last dimension", {"query": torch.zeros(1, DIM, HEADS, dtype=torch.bfloat16).transpose(1, 2)}),
    ("divisible by 256", {"block_size": 128}),
    ("at most 256", {"dim": 264}),
    ("multiple of 8", {"dim": 20}),
    ("block_table must have dtype", {"block_table": torch.zeros(1, 1, dtype=torch.int64)}),
    ("block_table must have shape", {"block_table": torch.zeros(2, 1, dtype=torch.int32)}),
    ("seqused_k must have dtype", {"seqused_k": torch.tensor([1])}),
    ("seqused_k must have shape", {"seqused_k": torch.tensor([1, 1], dtype=torch.int32)}),
    ("Try setting enable_gqa", {"enable_gqa": False}),
]


@pytest.mark.parametrize(("message", "change"), REFUSALS, ids=[message for message, _ in REFUSALS])
def test_the_stand_in_refuses_what_the_kernel_refuses(
    message: str, change: dict[str, Any], backend: FlashBackend
) -> None:
    change = dict(change)
    cache = torch.zeros(
        2, change.pop("block_size", PAGE), KV_HEADS, dim := change.pop("dim", DIM), dtype=torch.bfloat16
    )
    cumulative = torch.tensor([0, 1], dtype=torch.int32)
    arguments: dict[str, Any] = {
        "query": torch.zeros(1, HEADS, dim, dtype=torch.bfloat16),
        "key": cache,
        "value": cache,
        "cu_seq_q": cumulative,
        "cu_seq_k": cumulative,
        "max_q": 1,
        "max_k": 1,
        "enable_gqa": True,
        "seqused_k": torch.ones(1, dtype=torch.int32),
        "block_table": torch.zeros(1, 1, dtype=torch.int32),
    }
    varlen_attn = paged_varlen_attn()
    assert varlen_attn is not None
    with pytest.raises((RuntimeError, ValueError), match=message):
        varlen_attn(**(arguments | change))


def layer_of(backend: FlashBackend, num_blocks: int) -> LayerCache:
    layer = backend.allocate(LayerShape(KV_HEADS, DIM, DIM), num_blocks, PAGE, torch.bfloat16, CPU)
    for cached in (layer.keys, layer.values):
        cached.normal_(generator=torch.Generator().manual_seed(0))
    return layer


def refuse(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("this layer is not for FlashAttention")


class Noting(TorchBackend):
    num_calls = 0

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
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
    meta = batch_metadata([(0, 3)], np.zeros((1, 1), dtype=np.int32), 4, cpu)
    out = backend.run(layer, query, keys, values, spec=spec, meta=meta)
    assert other.num_calls == 1
    with pytest.raises(RuntimeError, match="on the host"):
        backend.run(layer, query, keys, values, spec=spec, meta=replace(meta, is_recorded=True))
    again = TorchBackend().run(layer, query, keys, values, spec=spec, meta=meta)
    torch.testing.assert_close(out, again)
