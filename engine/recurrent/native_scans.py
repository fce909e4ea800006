"""Convolutions and scans over the sequences of a step, by the CPU kernels (`engine/kernels/csrc/recurrent.cpp`).

Tensors have the shapes that transformers' layers give the functions which these stand in for, with one row of all the
step's tokens; `states` are those of all slots, which are read and written in place. Each token is computed by the
recurrent rule, whatever chunk or batch it comes in. Knows shapes, strides and types; nothing of models.
"""

import math
from ctypes import addressof
from typing import Protocol

import torch
from torch import Tensor

from orcinus.engine.kernels import structures
from orcinus.engine.kernels.library import Library

NATIVE_DTYPES = (torch.float32, torch.bfloat16)
# MOST_TAPS, MOST_KEYS and MOST_STATES of recurrent.cpp.
_MOST_TAPS, _MOST_KEYS, _MOST_STATES = 8, 512, 256


class Segments(Protocol):
    """Says where a step's sequences lie in its row of tokens, and in which slots their states are.

    `starts` (num_seqs + 1,) int32; `slots` (num_seqs,) int64, none of them twice; `is_new` (num_seqs,) bool: the
    sequence begins, and its slot holds what another one left. A slot below 0 is that of drafts: they go on from the end
    of the sequence before them, and their own end is kept in slot -1 - `slots[i]`.
    """

    @property
    def starts(self) -> Tensor: ...
    @property
    def slots(self) -> Tensor: ...
    @property
    def is_new(self) -> Tensor: ...


def can_convolve(dtype: torch.dtype, weight: Tensor, activation: str | None) -> bool:
    """Return whether inputs of this dtype are convolved natively with a weight (channels, taps)."""
    is_same = dtype in NATIVE_DTYPES and weight.dtype is dtype
    return is_same and weight.shape[1] <= _MOST_TAPS and activation in (None, "silu", "swish")


def can_scan(dtype: torch.dtype, state_dim: int) -> bool:
    """Return whether Mamba's or Mamba-2's scans of this dtype, with states of this dimension, are native."""
    return dtype in NATIVE_DTYPES and state_dim <= _MOST_STATES


def can_run_delta_rule(dtype: torch.dtype, key_dim: int) -> bool:
    """Return whether the delta rule over values of this dtype and keys of this dimension is native."""
    return dtype in NATIVE_DTYPES and key_dim <= _MOST_KEYS


class NativeScans:
    """Computes what recurrent layers do, over a step's sequences. One thread at a time calls it."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._segments: Segments | None = None  # those that `_native` tells of
        self._native = structures.Segments()

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        *,
        states: Tensor,
        segments: Segments,
    ) -> Tensor:
        """Convolve each channel causally: x (1, channels, num_tokens), weight (channels, taps), bias (channels,).

        `states` (num_slots, taps - 1, channels) are a sequence's last inputs, in x's dtype. Returns (1, channels,
        num_tokens), of which the channels of a token lie side by side.
        """
        _, channels, num_tokens = x.shape
        assert can_convolve(x.dtype, weight, activation)
        if x.stride(1) != 1:
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        weight = weight.contiguous()
        bias = None if bias is None else bias.to(x.dtype).contiguous()
        _check_states(states, (weight.shape[1] - 1, channels), x.dtype)
        out = x.new_empty(1, num_tokens, channels)
        call = structures.Convolution(
            segments=self._address_of(segments, num_tokens),
            x=x.data_ptr(),
            weight=weight.data_ptr(),
            bias=_pointer(bias),
            out=out.data_ptr(),
            states=states.data_ptr(),
            channels=channels,
            taps=weight.shape[1],
            x_token=x.stride(2),
            out_token=channels,
            slot_bytes=states.stride(0) * states.element_size(),
            is_bf16=x.dtype is torch.bfloat16,
            has_silu=activation is not None,
        )
        self._library.convolve(call)
        return out.transpose(1, 2)

    def delta_rule(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        decay: Tensor,
        beta: Tensor,
        normalized: bool,
        states: Tensor,
        segments: Segments,
    ) -> Tensor:
        """Let each state forget, learn a token by the gated delta rule, and answer its query, token by token.

        query and key (1, num_tokens, key_heads, key_dim), which are given length 1 first if `normalized`; value (1,
        num_tokens, heads, value_dim); decay in log space (1, num_tokens, heads) or (1, num_tokens, heads, key_dim);
        beta (1, num_tokens, heads); states (num_slots, heads, key_dim, value_dim) in float32. Returns (1, num_tokens,
        heads, value_dim).
        """
        _, num_tokens, heads, value_dim = value.shape
        key_heads, key_dim = key.shape[2:]
        dtype = value.dtype
        assert can_run_delta_rule(dtype, key_dim)
        assert query.dtype is dtype
        assert key.dtype is dtype
        _check_states(states, (heads, key_dim, value_dim), torch.float32)
        query, key, value = _in_rows(query), _in_rows(key), _in_rows(value)
        decay = decay.float()
        by_channel = decay.dim() == 4
        if by_channel:
            decay = _in_rows(decay)
        if beta.dtype is not dtype:
            beta = beta.float()
        out = value.new_empty(value.shape)
        call = structures.DeltaRule(
            segments=self._address_of(segments, num_tokens),
            query=query.data_ptr(),
            key=key.data_ptr(),
            value=value.data_ptr(),
            beta=beta.data_ptr(),
            decay=decay.data_ptr(),
            out=out.data_ptr(),
            states=states.data_ptr(),
            key_heads=key_heads,
            heads=heads,
            key_dim=key_dim,
            value_dim=value_dim,
            query_token=query.stride(1),
            query_head=query.stride(2),
            key_token=key.stride(1),
            key_head=key.stride(2),
            value_token=value.stride(1),
            value_head=value.stride(2),
            out_token=heads * value_dim,
            decay_token=decay.stride(1),
            decay_head=decay.stride(2),
            beta_token=beta.stride(1),
            beta_head=beta.stride(2),
            slot_bytes=states.stride(0) * 4,
            is_bf16=dtype is torch.bfloat16,
            has_float_beta=beta.dtype is torch.float32,
            has_channel_decay=by_channel,
            is_normalized=normalized,
        )
        self._library.delta_rule(call)
        return out

    def mamba2(
        self,
        x: Tensor,
        dt: Tensor,
        *,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor | None,
        states: Tensor,
        segments: Segments,
        dt_bias: Tensor | None = None,
        has_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf),
    ) -> Tensor:
        """Advance state spaces of Mamba-2 token by token.

        x (1, num_tokens, heads, head_dim); dt (1, num_tokens, heads), to which dt_bias (heads,) is added; a, negative,
        and d (heads,); b and c (1, num_tokens, groups, state_dim); states (num_slots, heads, head_dim, state_dim) in
        float32. Returns (1, num_tokens, heads, head_dim) in float32, as `mamba2_chunk_scan` of transformers does.
        """
        _, num_tokens, heads, head_dim = x.shape
        groups, state_dim = b.shape[2:]
        assert can_scan(x.dtype, state_dim)
        _check_states(states, (heads, head_dim, state_dim), torch.float32)
        x, b, c, dt = _in_rows(x), _in_rows(b.to(x.dtype)), _in_rows(c.to(x.dtype)), dt.to(x.dtype)
        dt_bias = None if dt_bias is None else dt_bias.to(x.dtype).contiguous()
        a, d = a.float().contiguous(), None if d is None else d.float().contiguous()
        out = torch.empty(x.shape, dtype=torch.float32)
        call = structures.Mamba2(
            segments=self._address_of(segments, num_tokens),
            x=x.data_ptr(),
            dt=dt.data_ptr(),
            dt_bias=_pointer(dt_bias),
            b=b.data_ptr(),
            c=c.data_ptr(),
            a=a.data_ptr(),
            d=_pointer(d),
            out=out.data_ptr(),
            states=states.data_ptr(),
            heads=heads,
            head_dim=head_dim,
            groups=groups,
            state_dim=state_dim,
            x_token=x.stride(1),
            x_head=x.stride(2),
            dt_token=dt.stride(1),
            dt_head=dt.stride(2),
            b_token=b.stride(1),
            b_group=b.stride(2),
            c_token=c.stride(1),
            c_group=c.stride(2),
            out_token=heads * head_dim,
            slot_bytes=states.stride(0) * 4,
            is_bf16=x.dtype is torch.bfloat16,
            has_softplus=has_softplus,
            dt_min=dt_limit[0],
            dt_max=dt_limit[1],
        )
        self._library.mamba2(call)
        return out

    def selective_scan(
        self,
        x: Tensor,
        dt: Tensor,
        *,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor | None,
        z: Tensor | None,
        states: Tensor,
        segments: Segments,
        dt_bias: Tensor | None = None,
        has_softplus: bool = False,
    ) -> Tensor:
        """Advance selective state spaces of Mamba token by token; what they give is multiplied by SiLU of z, if any.

        x, dt and z (1, channels, num_tokens); dt_bias, which is added to dt, and d (channels,); a (channels,
        state_dim), negative; b and c (1, state_dim, num_tokens); states (num_slots, channels, state_dim) in float32.
        Returns (1, channels, num_tokens) in float32, of which the channels of a token lie side by side.
        """
        _, channels, num_tokens = x.shape
        dtype, state_dim = x.dtype, a.shape[1]
        assert can_scan(dtype, state_dim)
        _check_states(states, (channels, state_dim), torch.float32)
        x, b, c = _by_token(x, dtype), _by_token(b, dtype), _by_token(c, dtype)
        z = None if z is None else _by_token(z, dtype)
        dt, dt_bias = dt.to(dtype), None if dt_bias is None else dt_bias.to(dtype).contiguous()
        a, d = a.float().contiguous(), None if d is None else d.float().contiguous()
        out = torch.empty(1, num_tokens, channels, dtype=torch.float32)
        call = structures.SelectiveScan(
            segments=self._address_of(segments, num_tokens),
            x=x.data_ptr(),
            dt=dt.data_ptr(),
            dt_bias=_pointer(dt_bias),
            b=b.data_ptr(),
            c=c.data_ptr(),
            z=_pointer(z),
            a=a.data_ptr(),
            d=_pointer(d),
            out=out.data_ptr(),
            states=states.data_ptr(),
            channels=channels,
            state_dim=state_dim,
            x_token=x.stride(2),
            dt_token=dt.stride(2),
            dt_channel=dt.stride(1),
            b_token=b.stride(2),
            c_token=c.stride(2),
            z_token=0 if z is None else z.stride(2),
            out_token=channels,
            slot_bytes=states.stride(0) * 4,
            is_bf16=dtype is torch.bfloat16,
            has_softplus=has_softplus,
        )
        self._library.selective_scan(call)
        return out.transpose(1, 2)

    def _address_of(self, segments: Segments, num_tokens: int) -> int:
        """Return where the kernels find the step's segments, which are looked at once per step."""
        if self._segments is not segments:
            starts, slots, is_new = segments.starts, segments.slots, segments.is_new
            assert (starts.dtype, slots.dtype, is_new.dtype) == (torch.int32, torch.int64, torch.bool)
            assert starts.is_contiguous()
            assert slots.is_contiguous()
            assert is_new.is_contiguous()
            assert len(slots) == len(is_new) == len(starts) - 1
            self._segments = segments
            self._native.num_seqs = len(slots)
            self._native.query_start, self._native.slots = starts.data_ptr(), slots.data_ptr()
            self._native.is_new = is_new.data_ptr()
            self._num_tokens = int(starts[-1])
        assert num_tokens == self._num_tokens
        return addressof(self._native)


def _check_states(states: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Assert that each slot holds one state of this shape in one piece; slots may be apart."""
    assert states.shape[1:] == shape
    assert states.dtype is dtype
    assert states[0].is_contiguous()


def _in_rows(tensor: Tensor) -> Tensor:
    """Return the tensor with its last dimension contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _by_token(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (1, channels, num_tokens) in this dtype with the channels of a token side by side."""
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(1) == 1 else tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
