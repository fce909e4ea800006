"""Attention whose result for a token depends on its own sequence alone, not on its chunk or its batch. CPU only.

The native kernels compute it so anyway. Without them each token of a step becomes a sequence of its own.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from orcinus.engine.attention.interface import AttentionBackend, AttentionMetadata, AttentionSpec, LayerCache
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.torch_backend import DecodeGroup, TorchBackend, decode_group, decode_spans


def token_by_token(backend: AttentionBackend) -> AttentionBackend:
    """Return the same attention, on a CPU, with results that depend on a token's own sequence and not on its chunk."""
    return backend if isinstance(backend, NativeBackend) else TorchTokenBackend()


class _TokenMetadata:
    """Holds a step's metadata with each token as the last one of a sequence of its own."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[AttentionMetadata, AttentionMetadata]] = {}  # by cache group

    def of(self, meta: AttentionMetadata) -> AttentionMetadata:
        """Return the same object in all layers of a step and a cache group."""
        whole, tokens = self._last.get(meta.group, (None, meta))
        if whole is not meta:
            tokens = _metadata_by_token(meta)
            self._last[meta.group] = meta, tokens
        return tokens


def _metadata_by_token(meta: AttentionMetadata) -> AttentionMetadata:
    if meta.num_decodes == meta.num_seqs:
        return meta
    num_tokens = meta.query_start[-1]
    sequences = np.repeat(np.arange(meta.num_seqs), np.diff(meta.query_start))
    behind = np.array(meta.query_start[1:])[sequences] - 1 - np.arange(num_tokens)
    seq_lens = (np.array(meta.seq_lens)[sequences] - behind).astype(np.int32)
    return replace(
        meta,
        query_start=list(range(num_tokens + 1)),
        seq_lens=seq_lens.tolist(),
        max_query_len=1,
        num_decodes=num_tokens,
        block_tables=meta.block_tables[torch.from_numpy(sequences)],
        query_start_tensor=torch.arange(num_tokens + 1, dtype=torch.int32),
        seq_lens_tensor=torch.from_numpy(seq_lens),
    )


class TorchTokenBackend(TorchBackend):
    """Attends to every token alone, gathering what it sees: its shape depends on nothing but its position. CPU only."""

    name = "torch-by-token"

    def __init__(self) -> None:
        super().__init__()
        self._tokens = _TokenMetadata()

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        return super().attend(layer, query, spec, self._tokens.of(meta))

    def _groups_of(self, meta: AttentionMetadata, window: int | None) -> list[DecodeGroup]:
        return [decode_group(meta, [span], window) for span in decode_spans(meta, window)]
