"""What attention over the paged KV cache is made of: layers, caches, a step's metadata, and the backends' protocol.

Owns the words that the runner, the backends and transformers' side share. Knows no backend, no model and no request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orcinus.engine.attention.step_layout import StepLayout, lay_out
from orcinus.engine.platform.device_copy import to_device


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Describes a step to backends as a `StepLayout` does, for one cache group; what kernels read is on the device."""

    query_start: list[int]  # num_seqs + 1
    seq_lens: list[int]
    max_query_len: int  # of any sequence
    max_seq_len: int
    num_decodes: int
    block_size: int
    slots: Tensor  # (num_tokens,) int64
    block_tables: Tensor  # (num_seqs, max_blocks) int32; behind a sequence's last block anything that is a block
    query_start_tensor: Tensor  # (num_seqs + 1,) int32
    seq_lens_tensor: Tensor  # (num_seqs,) int32
    group: int = 0  # whose block tables and slots these are
    is_recorded: bool = False  # to be replayed with other tensors' contents: lengths are the most that there can be

    @property
    def num_seqs(self) -> int:
        return len(self.seq_lens)


def batch_metadata(
    spans: Sequence[tuple[int, int]], tables: NDArray[np.int32], block_size: int, device: torch.device
) -> AttentionMetadata:
    """Return the metadata of a step in which sequence i computes positions `spans[i][0]` to `spans[i][1]`."""
    firsts, ends = np.array(spans, dtype=np.int64).T
    layout = lay_out(firsts, ends, [tables], block_size)
    (metadata,) = metadata_of(layout, to_device(layout.cache_arrays, device))
    return metadata


def metadata_of(layout: StepLayout, cache_tensors: Sequence[Tensor]) -> tuple[AttentionMetadata, ...]:
    """Return the metadata of each cache group in a step whose `cache_arrays` are on the device."""
    query_start_tensor, seq_lens_tensor, *of_groups = cache_tensors
    num_groups = len(layout.slots)
    query_start, seq_lens = layout.query_start.tolist(), layout.seq_lens.tolist()
    max_query_len = 1 if layout.is_decode else int(np.diff(layout.query_start).max())
    max_seq_len = max(seq_lens)
    return tuple(
        [
            AttentionMetadata(
                query_start=query_start,
                seq_lens=seq_lens,
                max_query_len=max_query_len,
                max_seq_len=max_seq_len,
                num_decodes=layout.num_decodes,
                block_size=layout.block_size,
                slots=of_groups[group],
                block_tables=of_groups[num_groups + group],
                query_start_tensor=query_start_tensor,
                seq_lens_tensor=seq_lens_tensor,
                group=group,
            )
            for group in range(num_groups)
        ]
    )


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Says how one layer attends. `window` counts the keys that a query sees, its own included; None is all.

    `softcap` bounds the scores with tanh (Gemma 2, https://arxiv.org/abs/2408.00118); `sinks` (num_heads,) are
    extra logits that take part in the softmax and carry no value (gpt-oss).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Gives the size of one token in one layer: `num_kv_heads * (key_dim + value_dim)` elements."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements_per_token(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """Says what one layer stores of each token, in the blocks of which cache group.

    A layer with a `source` attends to the keys and values of that layer, which comes before it, and stores none. One
    with `latents` stores what all its heads share, and has the two products made that stand in for expanding it.
    """

    shape: LayerShape
    group: int = 0
    source: nn.Module | None = None
    latents: "LatentProducts | None" = None


class LatentProducts(Protocol):
    """Turns the queries of a layer's heads into queries of latents, and what was attended to into the heads' results.

    Both are (num_tokens, num_heads, dim).
    """

    def queries(self, query: Tensor) -> Tensor: ...

    def results(self, out: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Holds one layer's keys and values, in a layout of the backend's own."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """Says where a layer's keys and values lie, in which group's blocks. If it `only_reads`, they are another's."""

    cache: LayerCache
    group: int = 0
    only_reads: bool = False
    latents: LatentProducts | None = None


class AttentionBackend(Protocol):
    """Attends over the paged cache. Queries, keys and values are `(num_tokens, num_heads, head_dim)`."""

    name: str
    block_size_multiple: int  # block sizes that it can work with
    reads_foreign_rows: bool  # of its own blocks those behind a sequence's end, with a weight of 0: they must be finite
    stores_int8: bool  # keys and values in 8 bits, whatever they are computed in

    def allocate(
        self, shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> LayerCache: ...

    def scrub(self, layer: LayerCache, block_ids: Tensor) -> None:
        """Make the blocks finite, before another sequence gets them, where foreign rows are read."""

    def run(
        self,
        layer: LayerCache,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        spec: AttentionSpec,
        meta: AttentionMetadata,
    ) -> Tensor:
        """Store the step's new keys and values in their slots, then `attend`."""

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        """Attend with each query causally, over its own sequence; returns (num_tokens, num_heads, value_dim).

        What no query of a sequence sees has no say, whatever its blocks hold by now.
        """


class LayerAttention(Protocol):
    """Answers the attention calls of a running model, layer by layer."""

    def __call__(
        self, module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec
    ) -> Tensor: ...
