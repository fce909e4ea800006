"""Attention over the paged KV cache, and how transformers' modelling code reaches it.

transformers calls `attention_function` (registered as "orcinus_paged") from every attention layer. Whoever runs the
model says beforehand, with `attending`, who answers those calls. A backend writes the new keys and values of a
layer into the cache and attends over them; it knows nothing of requests, sampling or scheduling, and nothing else
in the engine knows how the cache is laid out.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import addressof
from dataclasses import dataclass, replace
from functools import cache
from subprocess import SubprocessError
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from orcinus.engine.attention.step_layout import StepLayout, lay_out
from orcinus.engine.kernels.library import Library, load_library
from orcinus.engine.kernels.structures import Attention, Cache, Step
from orcinus.engine.platform.device_copy import to_device
from orcinus.engine.platform.memory import zeroed_bytes

logger = logging.getLogger(__name__)

ATTENTION_NAME = "orcinus_paged"
NATIVE_DTYPES = (torch.float32, torch.bfloat16)

# Rows of a decode batch are gathered together while the longest needs at most this many times the blocks of the
# shortest: padding stays below half of the work, and a batch falls into few groups.
_MAX_PADDING_RATIO = 2


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """A `StepLayout` for backends: what kernels read is on the device."""

    query_start: list[int]  # num_seqs + 1
    seq_lens: list[int]
    num_decodes: int
    block_size: int
    slots: Tensor  # (num_tokens,) int64
    block_tables: Tensor  # (num_seqs, max_blocks) int32; behind a sequence's last block anything that is a block
    query_start_tensor: Tensor  # (num_seqs + 1,) int32
    seq_lens_tensor: Tensor  # (num_seqs,) int32
    is_recorded: bool = False  # to be replayed with other tensors' contents: `seq_lens` are the most that there can be

    @property
    def num_seqs(self) -> int:
        return len(self.seq_lens)

    @property
    def max_query_len(self) -> int:
        return max(b - a for a, b in zip(self.query_start, self.query_start[1:], strict=False))


def batch_metadata(
    spans: Sequence[tuple[int, int]], tables: NDArray[np.int32], block_size: int, device: torch.device
) -> AttentionMetadata:
    """Metadata of a step in which sequence i computes positions `spans[i][0]` to `spans[i][1]`, as in `lay_out`."""
    firsts, ends = np.array(spans, dtype=np.int64).T
    layout = lay_out(firsts, ends, tables, block_size)
    return metadata_of(layout, to_device(layout.cache_arrays, device))


def metadata_of(layout: StepLayout, cache_tensors: Sequence[Tensor]) -> AttentionMetadata:
    """Metadata of a step whose `cache_arrays` are on the device."""
    slots, block_tables, query_start, seq_lens = cache_tensors
    return AttentionMetadata(
        query_start=layout.query_start.tolist(),
        seq_lens=layout.seq_lens.tolist(),
        num_decodes=layout.num_decodes,
        block_size=layout.block_size,
        slots=slots,
        block_tables=block_tables,
        query_start_tensor=query_start,
        seq_lens_tensor=seq_lens,
    )


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How one layer attends. `window` counts the keys a query sees, itself included; None is all of them.

    `softcap` bounds the scores with tanh (Gemma 2, https://arxiv.org/abs/2408.00118); `sinks` (num_heads,) are
    extra logits that take part in the softmax and carry no value (gpt-oss).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one token costs one layer: `num_kv_heads * (key_dim + value_dim)` elements."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements_per_token(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values. The layout is the backend's own."""

    keys: Tensor
    values: Tensor


class AttentionBackend(Protocol):
    """One way to attend over the paged cache. Queries, keys and values are `(num_tokens, num_heads, head_dim)`."""

    name: str
    block_size_multiple: int  # block sizes that it can work with

    def allocate(
        self, shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> LayerCache: ...

    def scrub(self, layer: LayerCache, block_ids: Tensor) -> None:
        """Make the blocks finite, before another sequence gets them."""

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
        """Store the step's new keys and values in their slots, then attend: each query causally, over its own sequence.

        Returns (num_tokens, num_heads, value_dim).
        """


class LayerAttention(Protocol):
    """Answers the attention calls of a running model, layer by layer."""

    def __call__(
        self, module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec
    ) -> Tensor: ...


_ATTENDING: ContextVar[LayerAttention] = ContextVar("attending")


@contextmanager
def attending(answer: LayerAttention) -> Iterator[None]:
    """Let `answer` serve the attention layers of any model that runs inside."""
    token = _ATTENDING.set(answer)
    try:
        yield
    finally:
        _ATTENDING.reset(token)


def answering() -> LayerAttention:
    """Who serves the attention layers of the model that runs now."""
    return _ATTENDING.get()


def attention_function(  # noqa: PLR0917 (the signature is transformers')
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `(1, heads, num_tokens, head_dim)` in, `(1, num_tokens, heads, dim)` out."""
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError("it attends with a mask of its own, not causally")
    if any(_unused.get(name) is not None for name in ("position_bias", "indices", "cache")):
        raise UnsupportedAttentionError("it adds a position bias or an index to attention")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    spec = AttentionSpec(scale, sliding_window, softcap, s_aux)
    out = answering()(module, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), spec)
    return out.unsqueeze(0), None


class UnsupportedAttentionError(Exception):
    """A model's attention cannot be served from a paged cache; the message completes "because ..."."""


class PagedAttention:
    """Serves the layers of one model from their caches. `begin_step` says where the tokens of the next run lie."""

    def __init__(self, backend: AttentionBackend, layers: dict[nn.Module, LayerCache]) -> None:
        self.backend = backend
        self._layers = layers
        self._meta: AttentionMetadata | None = None

    def begin_step(self, meta: AttentionMetadata) -> None:
        self._meta = meta

    def scrub(self, block_ids: Tensor) -> None:
        """Make the blocks of a request that went wrong safe for the next one."""
        for layer in self._layers.values():
            self.backend.scrub(layer, block_ids)

    def __call__(self, module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        assert self._meta is not None
        return self.backend.run(self._layers[module], query, keys, values, spec=spec, meta=self._meta)

    def native_call(self, module: nn.Module, spec: AttentionSpec, num_heads: int) -> Attention:
        """For code that calls the native kernels itself: a layer's call without its tensors, good for all steps."""
        assert isinstance(self.backend, NativeBackend)
        return self.backend.call(self._layers[module], num_heads, spec)

    def begin_native_step(self) -> None:
        """Let the calls of an earlier step serve this one."""
        assert self._meta is not None
        assert isinstance(self.backend, NativeBackend)
        self.backend.begin(self._meta)


class ShapeProbe:
    """Attends without a cache, over one sequence from its start, and notes each layer's shape and how it attends."""

    def __init__(self) -> None:
        self.shapes: dict[nn.Module, LayerShape] = {}
        self.specs: dict[nn.Module, AttentionSpec] = {}
        self.dtype: torch.dtype | None = None

    def __call__(self, module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        if module in self.shapes:
            raise UnsupportedAttentionError("one attention layer runs more than once per token")
        if keys.shape[0] != query.shape[0]:
            raise UnsupportedAttentionError("its keys are not those of its own tokens")
        self.shapes[module] = LayerShape(keys.shape[1], keys.shape[2], values.shape[2])
        self.dtype = keys.dtype
        self.specs[module] = spec
        length = query.shape[0]
        mask = causal_mask(length, length, spec.window, query.device)
        return _attend_dense(_heads_first(query), _heads_first(keys), _heads_first(values), mask, spec)


def causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """(num_queries, num_keys), True where the query sees the key; the last query is the last key's."""
    query = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
    key = torch.arange(num_keys, device=device).unsqueeze(0)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def _heads_first(tokens: Tensor) -> Tensor:
    """(num_tokens, heads, dim) -> (1, heads, num_tokens, dim), a view."""
    return tokens.transpose(0, 1).unsqueeze(0)


def _attend_dense(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, spec: AttentionSpec) -> Tensor:
    """One sequence: (1, heads, queries, dim) over (1, kv_heads, keys, dim) -> (queries, heads, value_dim)."""
    groups = query.shape[1] // keys.shape[1]
    if groups > 1:
        keys = keys.repeat_interleave(groups, dim=1)
        values = values.repeat_interleave(groups, dim=1)
    sinks = None if spec.sinks is None else spec.sinks.view(1, -1, 1, 1)
    return scaled_dot_product(query, keys, values, mask, spec=spec, sinks=sinks)[0].transpose(0, 1)


def scaled_dot_product(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """(batch, heads, queries, dim) each; `mask` is boolean and broadcasts, `sinks` broadcasts over the scores."""
    if spec.softcap is None and sinks is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=spec.scale)
    scores = torch.matmul(query, keys.transpose(-1, -2)).float() * spec.scale
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    scores = scores.masked_fill(~mask, -math.inf)
    if sinks is None:
        return torch.matmul(torch.softmax(scores, dim=-1).to(values.dtype), values)
    column = sinks.float().expand(*scores.shape[:-1], 1)
    weights = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    return torch.matmul(weights.to(values.dtype), values)


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Sequences of similar length that decode together. Row order is arbitrary: `rows` says whose is whose."""

    rows: Tensor  # (n,) int64, into the step's sequences
    blocks: Tensor  # (n * num_blocks,) int64
    mask: Tensor  # (n, 1, 1, num_blocks * block_size)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One sequence with several queries."""

    start: int
    end: int
    blocks: Tensor  # (num_blocks,) int64
    num_keys: int  # within the gathered blocks
    mask: Tensor  # (queries, num_keys)


@dataclass(frozen=True, slots=True)
class _Gathers:
    decodes: list[_DecodeGroup]
    chunks: list[_Chunk]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, because a masked slot still meets a weight of 0, and 0 * NaN is NaN.

    On a CPU the pages come from the kernel as zeros when they are touched, which torch.zeros does at once.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return zeroed_bytes(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def scrub_blocks(layer: LayerCache, block_ids: Tensor) -> None:
    for cached in (layer.keys, layer.values):
        cached[block_ids] = torch.nan_to_num(cached[block_ids], 0.0, 0.0, 0.0)


class TorchBackend:
    """Gathers each sequence's blocks, then attends with torch's own operations. Runs on every device.

    Blocks are `(block_size, kv_heads, dim)`, so that gathered blocks are one sequence without another copy.
    """

    name = "torch"
    block_size_multiple = 1

    def __init__(self) -> None:
        self._meta: AttentionMetadata | None = None
        self._gathers: dict[int | None, _Gathers] = {}

    def allocate(
        self, shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        base = (num_blocks, block_size, shape.num_kv_heads)
        return LayerCache(zeros((*base, shape.key_dim), dtype, device), zeros((*base, shape.value_dim), dtype, device))

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
        self.write(layer, keys, values, meta)
        return self.attend(layer, query, spec, meta)

    def write(self, layer: LayerCache, keys: Tensor, values: Tensor, meta: AttentionMetadata) -> None:
        layer.keys.flatten(0, 1).index_copy_(0, meta.slots, keys.to(layer.keys.dtype))
        layer.values.flatten(0, 1).index_copy_(0, meta.slots, values.to(layer.values.dtype))

    def scrub(self, layer: LayerCache, block_ids: Tensor) -> None:
        scrub_blocks(layer, block_ids)

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        gathers = self._gathers_of(meta, spec.window)
        out = query.new_empty(query.shape[0], query.shape[1], layer.values.shape[-1])
        for group in gathers.decodes:
            out[group.rows] = self._attend_decodes(layer, query[group.rows], group, spec)
        for chunk in gathers.chunks:
            out[chunk.start : chunk.end] = self._attend_chunk(layer, query, chunk, spec)
        return out

    def _gathers_of(self, meta: AttentionMetadata, window: int | None) -> _Gathers:
        """All layers of a step with one window share their index tensors."""
        if meta.is_recorded:
            raise RuntimeError("which blocks are gathered is decided on the host, at each step anew")
        if self._meta is not meta:
            self._meta = meta
            self._gathers = {}
        if window not in self._gathers:
            chunks = [_chunk(meta, i, window) for i in range(meta.num_decodes, meta.num_seqs)]
            self._gathers[window] = _Gathers(self._groups_of(meta, window), chunks)
        return self._gathers[window]

    def _groups_of(self, meta: AttentionMetadata, window: int | None) -> list[_DecodeGroup]:
        return _decode_groups(meta, window)

    @staticmethod
    def _attend_decodes(layer: LayerCache, query: Tensor, group: _DecodeGroup, spec: AttentionSpec) -> Tensor:
        n, num_heads, _ = query.shape
        keys = layer.keys.index_select(0, group.blocks).view(n, -1, *layer.keys.shape[2:]).transpose(1, 2)
        values = layer.values.index_select(0, group.blocks).view(n, -1, *layer.values.shape[2:]).transpose(1, 2)
        num_kv_heads = keys.shape[1]
        # The heads that share a KV head are its query rows: keys and values are read once for all of them.
        grouped = query.view(n, num_kv_heads, num_heads // num_kv_heads, -1)
        sinks = None if spec.sinks is None else spec.sinks.view(1, num_kv_heads, -1, 1)
        return scaled_dot_product(grouped, keys, values, group.mask, spec=spec, sinks=sinks).reshape(n, num_heads, -1)

    @staticmethod
    def _attend_chunk(layer: LayerCache, query: Tensor, chunk: _Chunk, spec: AttentionSpec) -> Tensor:
        keys = layer.keys.index_select(0, chunk.blocks).flatten(0, 1)[: chunk.num_keys]
        values = layer.values.index_select(0, chunk.blocks).flatten(0, 1)[: chunk.num_keys]
        rows = query[chunk.start : chunk.end]
        return _attend_dense(_heads_first(rows), _heads_first(keys), _heads_first(values), chunk.mask, spec)


def _first_block(first_query: int, window: int | None, block_size: int) -> int:
    """The first block that a query at this position, or any later one, can see."""
    return 0 if window is None else max(0, first_query + 1 - window) // block_size


def _chunk(meta: AttentionMetadata, i: int, window: int | None) -> _Chunk:
    start, end, seq_len = meta.query_start[i], meta.query_start[i + 1], meta.seq_lens[i]
    first = _first_block(seq_len - (end - start), window, meta.block_size)
    last = math.ceil(seq_len / meta.block_size)
    num_keys = seq_len - first * meta.block_size
    mask = causal_mask(end - start, num_keys, window, meta.slots.device)
    return _Chunk(start, end, meta.block_tables[i, first:last].long(), num_keys, mask)


def _decode_spans(meta: AttentionMetadata, window: int | None) -> list[tuple[int, int, int]]:
    """(number of blocks, first block, sequence) of what decodes."""
    spans = []
    for i in range(meta.num_decodes):
        first = _first_block(meta.seq_lens[i] - 1, window, meta.block_size)
        spans.append((math.ceil(meta.seq_lens[i] / meta.block_size) - first, first, i))
    return spans


def _decode_groups(meta: AttentionMetadata, window: int | None) -> list[_DecodeGroup]:
    groups: list[list[tuple[int, int, int]]] = []
    for span in sorted(_decode_spans(meta, window)):
        if not groups or span[0] > _MAX_PADDING_RATIO * groups[-1][0][0]:
            groups.append([])
        groups[-1].append(span)
    return [_decode_group(meta, group, window) for group in groups]


def _decode_group(meta: AttentionMetadata, spans: list[tuple[int, int, int]], window: int | None) -> _DecodeGroup:
    """`spans` are those of `_decode_spans`, shortest first."""
    device = meta.slots.device
    longest = spans[-1][0]
    rows = torch.tensor([i for _, _, i in spans], device=device)
    firsts = torch.tensor([first for _, first, _ in spans], device=device)
    columns = firsts.unsqueeze(1) + torch.arange(longest, device=device)
    ends = meta.seq_lens_tensor[rows].unsqueeze(1)
    # Padding repeats a block of the same sequence: a weight of 0 does not silence another one's NaN.
    columns = torch.minimum(columns, (ends - 1) // meta.block_size)
    blocks = meta.block_tables[rows.unsqueeze(1), columns].long().flatten()
    positions = firsts.unsqueeze(1) * meta.block_size + torch.arange(longest * meta.block_size, device=device)
    mask = positions < ends
    if window is not None:
        mask &= positions >= ends - window
    return _DecodeGroup(rows, blocks, mask[:, None, None, :])


class _ByToken:
    """The tokens of a step as sequences of their own, each of which ends with its token."""

    def __init__(self) -> None:
        self._whole: AttentionMetadata | None = None
        self._tokens: AttentionMetadata | None = None

    def of(self, meta: AttentionMetadata) -> AttentionMetadata:
        """The same object in all layers of a step."""
        if self._tokens is None or self._whole is not meta:
            self._whole, self._tokens = meta, _apart(meta)
        return self._tokens


def _apart(meta: AttentionMetadata) -> AttentionMetadata:
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
        self._tokens = _ByToken()

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        return super().attend(layer, query, spec, self._tokens.of(meta))

    def _groups_of(self, meta: AttentionMetadata, window: int | None) -> list[_DecodeGroup]:
        return [_decode_group(meta, [span], window) for span in _decode_spans(meta, window)]


class VarlenBackend(TorchBackend):
    """FlashAttention over the paged cache in place, as torch 2.13 ships it. CUDA, float16 and bfloat16 only.

    Not yet run on a GPU. What it cannot do (soft-capping, sinks, keys and values of different sizes) is left to
    `fallback`, which shares its layout.
    """

    name = "flash-varlen"
    block_size_multiple = 256  # FlashAttention 2 reads pages of multiples of 256 tokens

    def __init__(self, varlen_attn: Callable[..., Tensor], fallback: TorchBackend) -> None:
        super().__init__()
        self._varlen_attn = varlen_attn
        self.fallback = fallback

    def attend(self, layer: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
        if spec.softcap is not None or spec.sinks is not None or layer.keys.shape != layer.values.shape:
            return self.fallback.attend(layer, query, spec, meta)
        return self._varlen_attn(
            query,
            layer.keys,
            layer.values,
            meta.query_start_tensor,
            None,
            meta.max_query_len,
            max(meta.seq_lens),
            scale=spec.scale,
            window_size=(-1 if spec.window is None else spec.window - 1, 0),
            enable_gqa=query.shape[1] != layer.keys.shape[2],
            seqused_k=meta.seq_lens_tensor,
            block_table=meta.block_tables,
        )


@dataclass(frozen=True, slots=True)
class _NativeCache(LayerCache):
    native: Cache  # addresses of the two tensors


class NativeBackend:
    """Reads and writes the paged cache in place, on a CPU, with a kernel of our own (`engine/kernels`).

    Blocks are `(kv_heads, block_size, dim)`: the keys of one head are read one after the other.
    """

    block_size_multiple = 1

    def __init__(self, library: Library) -> None:
        self.name = f"native-{library.instruction_set}"
        self.library = library
        self._meta: AttentionMetadata | None = None
        self._step = Step()

    def allocate(
        self, shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        assert dtype in NATIVE_DTYPES
        base = (num_blocks, shape.num_kv_heads, block_size)
        keys, values = (zeros((*base, dim), dtype, device) for dim in (shape.key_dim, shape.value_dim))
        native = Cache(
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            num_kv_heads=shape.num_kv_heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
            is_bf16=dtype is torch.bfloat16,
        )
        return _NativeCache(keys, values, native)

    def scrub(self, layer: LayerCache, block_ids: Tensor) -> None:
        scrub_blocks(layer, block_ids)

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
        assert isinstance(layer, _NativeCache)
        rows, keys, values = (_as_rows(tensor, layer.keys.dtype) for tensor in (query, keys, values))
        num_tokens, num_heads, _ = rows.shape
        out = rows.new_empty(num_tokens, num_heads, layer.native.value_dim)
        sinks = None if spec.sinks is None else spec.sinks.float().contiguous()
        self.begin(meta)
        call = self.call(layer, num_heads, spec)
        call.query, call.new_keys, call.new_values = rows.data_ptr(), keys.data_ptr(), values.data_ptr()
        call.out, call.out_token = out.data_ptr(), out.stride(0)
        call.query_token, call.query_head, _ = rows.stride()
        call.key_token, call.key_head, _ = keys.stride()
        call.value_token, call.value_head, _ = values.stride()
        call.sinks = None if sinks is None else sinks.data_ptr()
        self.library.attend(call)
        return out if out.dtype is query.dtype else out.to(query.dtype)

    def call(self, layer: LayerCache, num_heads: int, spec: AttentionSpec) -> Attention:
        """All of a layer's call but its tensors and sinks, for the step that has begun and for those after it."""
        assert isinstance(layer, _NativeCache)
        return Attention(
            step=addressof(self._step),
            cache=addressof(layer.native),
            num_heads=num_heads,
            window=spec.window or 0,
            scale=spec.scale,
            softcap=spec.softcap or 0.0,
        )

    def begin(self, meta: AttentionMetadata) -> None:
        """All layers of a step share its addresses, which stay where they are from step to step."""
        if self._meta is meta:
            return
        self._meta = meta
        step = self._step
        step.num_tokens, step.num_seqs = meta.query_start[-1], meta.num_seqs
        step.block_size, step.table_stride = meta.block_size, meta.block_tables.stride(0)
        step.query_start, step.seq_lens = meta.query_start_tensor.data_ptr(), meta.seq_lens_tensor.data_ptr()
        step.block_tables, step.slots = meta.block_tables.data_ptr(), meta.slots.data_ptr()


class NativeTokenBackend(NativeBackend):
    """Attends to every token as if it were its sequence's last, in one order of the keys: a chunk changes nothing."""

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self.name = f"{self.name}-by-token"
        self._step.in_one_part = True
        self._tokens = _ByToken()

    def begin(self, meta: AttentionMetadata) -> None:
        super().begin(self._tokens.of(meta))


def _as_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In this dtype, and with its last dimension in one piece; the strides of the others may be anything."""
    if tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def choose_backend(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The fastest backend that this device, this dtype and this torch have."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return _backend_in_place(device, dtype)
    if device.type == "cpu" and dtype in NATIVE_DTYPES:
        library = load_library()
        if library is not None:
            return NativeBackend(library)
    return TorchBackend()


def token_by_token(backend: AttentionBackend) -> AttentionBackend:
    """On a CPU, the same attention with results that are a function of a token's own sequence, whatever its chunk."""
    return NativeTokenBackend(backend.library) if isinstance(backend, NativeBackend) else TorchTokenBackend()


def _backend_in_place(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """For a GPU from Ampere on. Older ones have too little shared memory for the kernels."""
    backend = _triton_backend(device, dtype)
    varlen_attn = _paged_varlen_attn() if dtype in (torch.float16, torch.bfloat16) else None
    return backend if varlen_attn is None else VarlenBackend(varlen_attn, backend)


def _triton_backend(device: torch.device, dtype: torch.dtype) -> TorchBackend:
    """CUDA builds of torch bring Triton along, on Linux. To launch anything it needs a C compiler."""
    try:
        from orcinus.engine.attention.triton_backend import TritonBackend

        backend = TritonBackend(torch.cuda.get_device_properties(device).multi_processor_count)
        backend.try_out(device, dtype)
    except (ImportError, RuntimeError, OSError, SubprocessError) as error:
        logger.warning("blocks of the cache are gathered before they are attended to: Triton does not work: %s", error)
        return TorchBackend()
    return backend


@cache
def _paged_varlen_attn() -> Callable[..., Tensor] | None:
    """torch's `varlen_attn` if it is there and takes a block table (2.13 on)."""
    from importlib import import_module
    from inspect import signature

    try:
        function: Callable[..., Tensor] = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return function if "block_table" in signature(function).parameters else None
