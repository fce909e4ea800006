"""Decoder layers as one native call: norms, projections, rotary positions, attention, MLP.

Knows nothing of requests, nor which layers may be replaced; where keys and values lie comes from the attention that
answers.
"""

from collections.abc import Sequence
from ctypes import addressof, c_void_p
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.attention.interface import AttentionSpec, LayerShape
from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.attention.step_context import current_step
from orcinus.engine.cpu.layer_parts import LayerParts, Place, has_gate, norm_eps
from orcinus.engine.cpu.native_linear import Kind, PackedWeight
from orcinus.engine.kernels.library import Library
from orcinus.engine.kernels.structures import Attention, DecoderCall, DecoderLayer, Norm


class NativeWeights:
    """Holds the packed weights of one layer; its attention module is the key to its cache."""

    def __init__(self, parts: LayerParts, shape: LayerShape, spec: AttentionSpec, library: Library, kind: Kind) -> None:
        self.attention = parts.attention
        self.spec = spec
        self.num_heads = parts.mixer_out.module.in_features // shape.key_dim
        self._projections = _packed(library, parts.projections, kind)
        self._mixer_out = _packed(library, [parts.mixer_out], kind)
        self._gate_up = _packed(library, [parts.gate, parts.up], kind, alternates=True)
        self._down = _packed(library, [parts.down], kind)
        self._norms = [parts.mixer_norm, parts.mlp_norm, parts.query_norm, parts.key_norm]  # their weights are in use
        self.native = self._structure(shape.key_dim, has_gate(parts))

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in (self._projections, self._mixer_out, self._gate_up, self._down))

    def _structure(self, head_dim: int, has_gate: bool) -> DecoderLayer:
        mixer_norm, mlp_norm, query_norm, key_norm = (_norm(norm) for norm in self._norms)
        return DecoderLayer(
            projections=addressof(self._projections.native),
            mixer_out=addressof(self._mixer_out.native),
            gate_up=addressof(self._gate_up.native),
            down=addressof(self._down.native),
            mixer_norm=mixer_norm,
            mlp_norm=mlp_norm,
            query_norm=query_norm,
            key_norm=key_norm,
            hidden_size=self._mixer_out.out_features,
            num_heads=self.num_heads,
            head_dim=head_dim,
            has_gate=has_gate,
        )

    def use_norms(self, *, are_zero_centred: bool) -> None:
        """Take the weights of norms as they are, or with 1 added."""
        for norm in (self.native.mixer_norm, self.native.mlp_norm, self.native.query_norm, self.native.key_norm):
            norm.is_zero_centred = are_zero_centred


class NativeDecoder(nn.Module):
    """Runs consecutive layers as one, (1, num_tokens, hidden_size) to the same, over the current step's caches."""

    def __init__(self, library: Library, layers: Sequence[NativeWeights]) -> None:
        super().__init__()
        self.layers = list(layers)
        self._library = library
        self._addresses = (c_void_p * len(layers))(*(addressof(layer.native) for layer in layers))
        self._served_by: PagedAttention | None = None
        self._attentions: Any = None

    @property
    def packed_bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def take_names_of(self, layer: nn.Module) -> None:
        """Take over what the model's code may read of the layer that this one replaces."""
        for name, value in vars(layer).items():
            if not name.startswith("_") and name not in vars(self):
                setattr(self, name, value)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *_positional: object,
        position_embeddings: tuple[Tensor, Tensor],
        **_unused: object,
    ) -> Tensor:
        assert attention_mask is None
        hidden = hidden_states[0]
        cosines, sines = (part[0] for part in position_embeddings)
        assert cosines.stride() == sines.stride()
        out = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
        self._library.decode(
            DecoderCall(
                layers=addressof(self._addresses),
                attentions=addressof(self._attention_calls()),
                num_layers=len(self.layers),
                num_tokens=hidden.shape[0],
                hidden=hidden.data_ptr(),
                cosines=cosines.data_ptr(),
                sines=sines.data_ptr(),
                out=out.data_ptr(),
                hidden_stride=hidden.stride(0),
                rotary_stride=cosines.stride(0),
                rotary_dim=cosines.shape[1],
            )
        )
        return out

    def _attention_calls(self) -> Any:
        """Return the layers' calls, the same in every step: what changes between steps is behind an address."""
        paged = current_step().attention
        assert isinstance(paged, PagedAttention)
        if paged is not self._served_by:
            calls = [paged.native_call(layer.attention, layer.spec, layer.num_heads) for layer in self.layers]
            self._served_by, self._attentions = paged, (Attention * len(calls))(*calls)
        paged.set_native_step()
        return self._attentions


def num_native_layers(model: nn.Module) -> int:
    """Return how many of the model's layers run natively."""
    return sum(len(module.layers) for module in model.modules() if isinstance(module, NativeDecoder))


def _packed(library: Library, places: Sequence[Place], kind: Kind, *, alternates: bool = False) -> PackedWeight:
    linears = [place.module for place in places]
    weights = [linear.weight.detach() for linear in linears]
    biases = [None if linear.bias is None else linear.bias.detach() for linear in linears]
    return PackedWeight(library, kind, weights, biases, alternates=alternates)


def _norm(norm: Any) -> Norm:
    return Norm() if norm is None else Norm(weight=norm.weight.data_ptr(), eps=norm_eps(norm))
