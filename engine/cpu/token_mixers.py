"""The token mixers of native layers: what our kernels need to know of an attention, a delta net or a convolution.

Each keeps the structure that the kernels read, and the tensors behind its addresses.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from ctypes import addressof
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.attention.interface import AttentionSpec, LayerShape
from orcinus.engine.cpu.layer_parts import AttentionParts, ConvolutionParts, DeltaNetParts, norm_eps
from orcinus.engine.kernels.structures import AttentionMixer, ConvolutionMixer, DecoderLayer, DeltaNetMixer, Norm
from orcinus.engine.recurrent.layer_states import LayerStates

_VECTOR = 16


class NativeAttention:
    """Attends; the attention module is the key to its cache."""

    states: LayerStates | None = None

    def __init__(self, parts: AttentionParts, shape: LayerShape, spec: AttentionSpec) -> None:
        self.module: nn.Module = parts.module
        self.shape, self.spec = shape, spec
        self.num_heads = parts.out.module.in_features // shape.key_dim
        self._kept = [parts.query_norm, parts.key_norm]
        self._native = AttentionMixer(
            query_norm=native_norm(parts.query_norm),
            key_norm=native_norm(parts.key_norm),
            num_heads=self.num_heads,
            head_dim=shape.key_dim,
            has_gate=parts.has_gate,
        )
        self.norms: Sequence[Norm] = (self._native.query_norm, self._native.key_norm)

    def put_into(self, layer: DecoderLayer) -> None:
        layer.attention = addressof(self._native)


class _WithStates(ABC):
    """Goes on from states in slots, wherever they lie by now."""

    norms: Sequence[Norm] = ()  # those of its layer's kind

    def __init__(self, states: LayerStates) -> None:
        self.states = states
        self.num_slots = 0
        self._known: list[Tensor] | None = None

    def find_states(self) -> None:
        """Have the kernels find the states, before each step."""
        if self.states.tensors is not self._known:
            self._known = self.states.tensors
            self.num_slots = self._known[0].shape[0]
            self._set_states(self._known)

    @abstractmethod
    def _set_states(self, tensors: list[Tensor]) -> None: ...


class NativeDeltaNet(_WithStates):
    """Takes the states of a gated delta net through a step's tokens."""

    def __init__(self, parts: DeltaNetParts, states: LayerStates) -> None:
        super().__init__(states)
        module: Any = parts.module
        self._kept = [parts.convolution, parts.norm]
        self._rates = _padded(-module.A_log.float().exp())
        self._offsets = _padded(module.dt_bias.float())
        convolution = parts.convolution
        self._native = DeltaNetMixer(
            conv_weight=convolution.weight.data_ptr(),
            conv_bias=None if convolution.bias is None else convolution.bias.data_ptr(),
            rates=self._rates.data_ptr(),
            dt_bias=self._offsets.data_ptr(),
            norm=native_norm(parts.norm),
            taps=convolution.weight.shape[2],
            key_heads=parts.key_heads,
            heads=parts.heads,
            key_dim=parts.key_dim,
            value_dim=parts.value_dim,
            beta_scale=2.0 if getattr(module, "allow_neg_eigval", False) else 1.0,
        )

    def put_into(self, layer: DecoderLayer) -> None:
        layer.delta_net = addressof(self._native)

    def _set_states(self, tensors: list[Tensor]) -> None:
        convolved, learnt = tensors
        self._native.conv_states, self._native.states = convolved.data_ptr(), learnt.data_ptr()
        self._native.slot_bytes = learnt.stride(0) * learnt.element_size()


class NativeConvolution(_WithStates):
    """Takes the last inputs of a short convolution through a step's tokens."""

    def __init__(self, parts: ConvolutionParts, states: LayerStates) -> None:
        super().__init__(states)
        convolution = parts.convolution
        self._kept = convolution
        self._native = ConvolutionMixer(
            weight=convolution.weight.data_ptr(),
            bias=None if convolution.bias is None else convolution.bias.data_ptr(),
            taps=convolution.weight.shape[2],
        )

    def put_into(self, layer: DecoderLayer) -> None:
        layer.convolution = addressof(self._native)

    def _set_states(self, tensors: list[Tensor]) -> None:
        (inputs,) = tensors
        self._native.states = inputs.data_ptr()
        self._native.slot_bytes = inputs.stride(0) * inputs.element_size()


NativeMixer = NativeAttention | NativeDeltaNet | NativeConvolution


def native_norm(norm: Any) -> Norm:
    """Return what the kernels know of a norm, which must stay alive, or of none."""
    return Norm() if norm is None else Norm(weight=norm.weight.data_ptr(), eps=norm_eps(norm))


def _padded(values: Tensor) -> Tensor:
    """Return (n,) numbers in float32, with zeros up to a whole vector."""
    padded = torch.zeros(-(-values.numel() // _VECTOR) * _VECTOR, dtype=torch.float32)
    padded[: values.numel()] = values
    return padded
