"""Attention over whole tensors with torch's own operations: one sequence, or rows that are padded to one length.

Knows nothing of caches, blocks and steps.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from orcinus.engine.attention.interface import AttentionSpec


def causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Return (num_queries, num_keys), True where the query sees the key; the last query is the last key's."""
    query = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
    key = torch.arange(num_keys, device=device).unsqueeze(0)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def heads_first(tokens: Tensor) -> Tensor:
    """Return a view of (num_tokens, heads, dim) as (1, heads, num_tokens, dim)."""
    return tokens.transpose(0, 1).unsqueeze(0)


def attend_dense(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, spec: AttentionSpec) -> Tensor:
    """Attend over one sequence: (1, heads, queries, dim), (1, kv_heads, keys, dim) -> (queries, heads, value_dim)."""
    groups = query.shape[1] // keys.shape[1]
    if groups > 1:
        keys = keys.repeat_interleave(groups, dim=1)
        values = values.repeat_interleave(groups, dim=1)
    sinks = None if spec.sinks is None else spec.sinks.view(1, -1, 1, 1)
    return scaled_dot_product(query, keys, values, mask, spec=spec, sinks=sinks)[0].transpose(0, 1)


def scaled_dot_product(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """Attend, with (batch, heads, tokens, dim) each; `mask` is boolean, and it and `sinks` broadcast to the scores."""
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
