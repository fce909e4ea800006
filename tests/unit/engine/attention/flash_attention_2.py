"""FlashAttention 2 as torch calls it, on a CPU: what its C++ source checks, and the result by the definition.

torch's own `varlen_attn` runs before it, so what that refuses is refused, too. The checks are those of
`_flash_attention_forward` and `mha_varlen_fwd` (ATen/native/transformers/cuda), in their order and nearly in their
words; what concerns the device and dropout is left out.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PAGE = 256


class FlashAttention2:
    """Notes of each call whether the query heads of a group share what is read of the keys."""

    def __init__(self) -> None:
        self.is_packed: list[bool] = []

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cum_seq_q: Tensor | None,
        cum_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        dropout_p: float,
        is_causal: bool,
        return_debug_mask: bool,
        *,
        scale: float | None = None,
        window_size_left: int | None = None,
        window_size_right: int | None = None,
        seqused_k: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        block_table: Tensor | None = None,
        num_splits: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        check((cum_seq_q is None) == (cum_seq_k is None), "both cumulative sequence lengths must be set or not set")
        assert cum_seq_q is not None, "the dense path is not for a paged cache"
        assert cum_seq_k is not None
        assert seqused_k is not None
        assert block_table is not None
        check_types(query, key, value, cum_seq_q, cum_seq_k, block_table)
        check_strides(query, key, value, cum_seq_q, cum_seq_k)
        check_shapes(query, key, value, cum_seq_q, cum_seq_k, block_table)
        check(seqused_k.dtype is torch.int32, "seqused_k must have dtype int32")
        check(seqused_k.is_contiguous(), "seqused_k must be contiguous")
        check(seqused_k.shape == (len(cum_seq_q) - 1,), "seqused_k must have shape (batch_size)")
        left = -1 if window_size_left is None else window_size_left
        right = -1 if window_size_right is None else window_size_right
        if is_causal and max_q > 1:
            right = 0
        self.is_packed.append(max_q == 1 and query.shape[1] > key.shape[2] and left < 0 and right < 0)
        left, right = (-1 if size >= max_k else size for size in (left, right))
        out = query.new_empty(query.shape)
        for i, used in enumerate(seqused_k.tolist()):
            assert used <= max_k, "more keys than the kernel was told of"
            rows = slice(int(cum_seq_q[i]), int(cum_seq_q[i + 1]))
            assert rows.stop - rows.start <= max_q, "more queries than the kernel was told of"
            own = [
                cache[block_table[i, : math.ceil(used / cache.shape[1])]].flatten(0, 1)[:used] for cache in (key, value)
            ]
            out[rows] = attended(query[rows], own[0], own[1], scale=scale, left=left, right=right)
        unused = torch.empty(0)
        return out, unused, unused, unused, unused


def check(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(message)


def check_types(
    query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Tensor, cum_seq_k: Tensor, block_table: Tensor
) -> None:
    check(query.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type")
    check(key.dtype is query.dtype, "query and key must have the same dtype")
    check(value.dtype is query.dtype, "query and value must have the same dtype")
    check(cum_seq_q.dtype is torch.int32, "cu_seqlens_q must have dtype int32")
    check(cum_seq_k.dtype is torch.int32, "cu_seqlens_k must have dtype int32")
    check(block_table.dtype is torch.int32, "block_table must have dtype torch.int32")
    check(block_table.stride(-1) == 1, "block_table must have contiguous last dimension")


def check_strides(query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Tensor, cum_seq_k: Tensor) -> None:
    for tensor in (query, key, value):
        check(tensor.stride(-1) == 1, "Input tensor must have contiguous last dimension")
    check(cum_seq_q.is_contiguous(), "cu_seqlens_q must be contiguous")
    check(cum_seq_k.is_contiguous(), "cu_seqlens_k must be contiguous")


def check_shapes(
    query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Tensor, cum_seq_k: Tensor, block_table: Tensor
) -> None:
    batch_size, (num_heads, head_size), num_heads_k = len(cum_seq_q) - 1, query.shape[1:], key.shape[2]
    check(key.shape[1] % PAGE == 0, "Paged KV cache block size must be divisible by 256")
    check(batch_size > 0, "batch size must be positive")
    check(head_size <= 256, "FlashAttention forward only supports head dimension at most 256")
    check(num_heads % num_heads_k == 0, "Number of heads in key/value must divide number of heads in query")
    check(head_size % 8 == 0, "head_size must be a multiple of 8, this is ensured by padding!")
    for cache in (key, value):
        check(
            cache.shape == (*key.shape[:3], head_size), "k and v must have shape (num_blocks, page, heads, head_size)"
        )
    check(block_table.shape[0] == batch_size, "block_table must have shape (batch_size, max_num_blocks_per_seq)")
    check(cum_seq_k.shape == (batch_size + 1,), "cu_seqlens_k must have shape (batch_size + 1)")


def attended(query: Tensor, keys: Tensor, values: Tensor, *, scale: float | None, left: int, right: int) -> Tensor:
    """Attend over one sequence, in float32."""
    group = query.shape[1] // keys.shape[1]
    k, v = (t.float().repeat_interleave(group, dim=1).transpose(0, 1) for t in (keys, values))
    mask = seen(query.shape[0], keys.shape[0], left, right)
    out = nn.functional.scaled_dot_product_attention(query.float().transpose(0, 1), k, v, attn_mask=mask, scale=scale)
    return out.transpose(0, 1).to(query.dtype)


def seen(num_queries: int, num_keys: int, left: int, right: int) -> Tensor:
    """(num_queries, num_keys), by the bounds before and after a query's own key; negative is none."""
    before, after = (num_keys if size < 0 else size for size in (left, right))
    distance = torch.arange(num_keys) - torch.arange(num_keys - num_queries, num_keys).unsqueeze(1)
    return (distance >= -before) & (distance <= after)


@contextmanager
def flash_attention_2() -> Iterator[FlashAttention2]:
    """Let torch find it where a CUDA build has the kernel."""
    kernel = FlashAttention2()
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("_flash_attention_forward", kernel.forward, "CPU")  # type: ignore[no-untyped-call]
    try:
        yield kernel
    finally:
        library._destroy()  # type: ignore[no-untyped-call]
