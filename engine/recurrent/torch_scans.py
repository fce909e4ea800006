"""Convolutions and scans over the sequences of a step by torch's operations: the meaning of the native kernels.

Every function takes the step's tokens flat, and the states of all slots, which it reads and writes. A scan computes
sequences of one token together, by the recurrent rule, few tokens of a sequence one by one, so that drafts are rounded
as what they stand for is, and each longer sequence by a function of transformers' that begins with a state. Sums are in
float32.

Gated delta rule: Yang et al., 2024, https://arxiv.org/abs/2412.06464. Delta attention with decays of channels: Kimi
Linear, 2025, https://arxiv.org/abs/2510.26692. Mamba-2: Dao and Gu, 2024, https://arxiv.org/abs/2405.21060. Mamba: Gu
and Dao, 2023, https://arxiv.org/abs/2312.00752.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from orcinus.engine.recurrent.segments import Segments

# Of one whole sequence: from its start and inputs (1, num_tokens, ...) to outputs (1, num_tokens, ...) and its end.
Continue = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
# Of sequences of one token each: from their states and their tokens to outputs and states.
Advance = Callable[[Tensor, slice], tuple[Tensor, Tensor]]

# Tokens of a sequence that are computed one by one: as many as may be tried as drafts, or be accepted of more.
FEW_TOKENS = 16


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str | None, states: Tensor, segments: Segments
) -> Tensor:
    """Convolve each channel causally: x (num_tokens, channels), weight (channels, taps), to (num_tokens, channels).

    `states` (num_slots, taps - 1, channels) are a sequence's last inputs.
    """
    width = weight.shape[1] - 1
    earlier = segments.of_owners(started(states, segments))
    order, places, last = segments.with_history(width)
    rows = torch.cat([earlier.flatten(0, 1).to(x.dtype), x])[order]
    states[segments.kept_in] = rows[last].to(states.dtype)
    inputs = rows.to(weight.dtype).t().unsqueeze(0)
    out = F.conv1d(inputs, weight.unsqueeze(1), bias, groups=weight.shape[0])[0].t()[places - width]
    if activation is not None:
        assert activation in ("silu", "swish")
        out = F.silu(out)
    return out.to(x.dtype)


def scan(states: Tensor, segments: Segments, advance: Advance, go_on: Continue | None = None) -> Tensor:
    """Return the outputs of a scan (num_tokens, ...), of whose tokens the functions are given the places.

    Without a function for whole sequences all tokens of one are computed one by one.
    """
    before = started(states, segments)
    outputs, ends = [], []
    if segments.num_singles:
        out, end = advance(before[: segments.num_singles], slice(0, segments.num_singles))
        outputs.append(out)
        ends.append(end)
    spans = list(pairwise(segments.query_start))
    for index in segments.longer:
        first, behind = spans[index]
        start = ends[-1] if index in segments.drafts else before[index : index + 1]
        if go_on is None or behind - first <= FEW_TOKENS:
            out, end = _one_by_one(advance, start, range(first, behind))
        else:
            whole, end = go_on(start, slice(first, behind))
            out = whole[0]
        outputs.append(out)
        ends.append(end)
    states[segments.kept_in] = torch.cat(ends).to(states.dtype)
    return torch.cat(outputs)


def _one_by_one(advance: Advance, state: Tensor, places: range) -> tuple[Tensor, Tensor]:
    """Return the outputs (num_tokens, ...) of a sequence whose tokens are there, and its end."""
    outputs = []
    for place in places:
        out, state = advance(state, slice(place, place + 1))
        outputs.append(out)
    return torch.cat(outputs), state


def started(states: Tensor, segments: Segments) -> Tensor:
    """Return the states of the step's sequences, zeros for those that begin; those of drafts mean nothing."""
    mask = segments.is_new.view(-1, *[1] * (states.dim() - 1))
    return torch.where(mask, 0, states[segments.kept_in])


def delta_step(
    query: Tensor, key: Tensor, value: Tensor, *, decay: Tensor, beta: Tensor, state: Tensor, normalized: bool
) -> tuple[Tensor, Tensor]:
    """Let each sequence's state forget, learn one token by the delta rule, and answer its query.

    query and key (num_seqs, key_heads, key_dim), of length 1 first if `normalized`; value (num_seqs, heads, value_dim);
    decay in log space (num_seqs, heads) or (num_seqs, heads, key_dim); beta (num_seqs, heads); state (num_seqs, heads,
    key_dim, value_dim).
    """
    per_key = value.shape[1] // key.shape[1]
    q, k = (x.float().repeat_interleave(per_key, dim=1) if per_key > 1 else x.float() for x in (query, key))
    if normalized:
        q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    factors = decay.float().exp()
    state = state * (factors[..., None, None] if factors.dim() == 2 else factors[..., None])
    known = torch.einsum("nhkv,nhk->nhv", state, k)
    learnt = (value.float() - known) * beta.float()[..., None]
    state = state + k[..., None] * learnt[..., None, :]
    out = torch.einsum("nhkv,nhk->nhv", state, q) * q.shape[-1] ** -0.5
    return out.to(query.dtype), state


def mamba2_step(
    x: Tensor, dt: Tensor, *, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Advance a state space of Mamba-2 by one token of each sequence.

    x (num_seqs, heads, head_dim), dt (num_seqs, heads), ready to use; a (heads,); b and c (num_seqs, groups,
    state_dim); d (heads,); state (num_seqs, heads, head_dim, state_dim).
    """
    per_group = x.shape[1] // b.shape[1]
    b, c = (v.float().repeat_interleave(per_group, dim=1) for v in (b, c))
    values, steps = x.float(), dt.float()
    state = state * (a.float() * steps).exp()[..., None, None] + (values * steps[..., None])[..., None] * b[:, :, None]
    out = torch.einsum("nhpk,nhk->nhp", state, c)
    return (out if d is None else out + values * d.float()[:, None]), state


def selective_step(
    x: Tensor, dt: Tensor, *, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Advance a selective state space of Mamba by one token of each sequence.

    x and dt (num_seqs, channels), a (channels, state_dim), b and c (num_seqs, state_dim), d (channels,), state
    (num_seqs, channels, state_dim).
    """
    steps, values = dt.float(), x.float()
    state = state * (steps[..., None] * a.float()).exp() + (steps * values)[..., None] * b.float()[:, None]
    out = torch.einsum("nck,nk->nc", state, c.float())
    return (out if d is None else out + values * d.float()), state
