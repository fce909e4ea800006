"""Sequences, steps over them, and attention as its definition says: what the tests of the backends share."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from orcinus.engine.attention.interface import AttentionBackend, AttentionSpec, LayerCache, batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.torch_backend import TorchBackend
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
    block_size: int = BLOCK,
) -> list[Tensor]:
    meta = batch_metadata(spans, tables, block_size, CPU)
    query, keys, values = (
        torch.cat([getattr(s, name)[a:b] for s, (a, b) in zip(sequences, spans, strict=True)])
        for name in ("query", "keys", "values")
    )
    out = backend.run(layer, query, keys, values, spec=spec, meta=meta)
    return list(torch.split(out, [b - a for a, b in spans]))


def shuffled_tables(num_seqs: int, width: int) -> np.ndarray:
    blocks = np.random.default_rng(0).permutation(num_seqs * width).astype(np.int32)
    return blocks.reshape(num_seqs, width)
