"""Decoder layers as one native call: norms, products, what mixes tokens, MLP.

Knows nothing of requests, nor which layers may be replaced; where keys, values and states lie comes from the current
step.
"""

from collections.abc import Mapping, Sequence
from ctypes import addressof, c_void_p
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.attention.serving import PagedAttention
from orcinus.engine.attention.step_context import current_step
from orcinus.engine.cpu.grouped_weight import GroupedWeight
from orcinus.engine.cpu.joined_linear import JoinedLinears, LinearPart, joined_parts
from orcinus.engine.cpu.layer_parts import LayerParts, Place, packed_weight_of
from orcinus.engine.cpu.native_linear import Kind, NativeLinear, PackedWeight, packed_weight
from orcinus.engine.cpu.packed_sources import sources_of
from orcinus.engine.cpu.token_mixers import NativeAttention, NativeMixer, native_norm
from orcinus.engine.kernels import structures
from orcinus.engine.kernels.library import Library
from orcinus.engine.kernels.structures import Attention, DecoderCall, DecoderLayer
from orcinus.engine.platform.memory import MappedFiles
from orcinus.engine.recurrent.segments import Segments


@dataclass(frozen=True, slots=True)
class Product:
    """Holds the packed weight of one or more layers of one input, and where these are."""

    places: list[Place]
    packed: PackedWeight | GroupedWeight

    def stand_ins(self, library: Library) -> list[tuple[Place, nn.Module]]:
        """Return modules that multiply with the packed weight, for places whose own are plain."""
        modules = [place.module for place in self.places]
        if any(isinstance(module, NativeLinear | LinearPart) for module in modules):
            return []
        biases = [
            module.bias if module.bias is None else _in_order(module.bias, place.order)
            for module, place in zip(modules, self.places, strict=True)
        ]
        linear = NativeLinear.over(library, self.packed, biases)
        sizes, orders = [module.out_features for module in modules], [place.order for place in self.places]
        parts = joined_parts(linear, sizes, orders, alternates=self.packed.alternates)
        return list(zip(self.places, parts, strict=True))


class NativeWeights:
    """Holds the packed weights of one layer, or of what comes before its experts, and its mixer."""

    def __init__(
        self,
        parts: LayerParts,
        mixer: NativeMixer,
        library: Library,
        kind: Kind,
        *,
        projection_kinds: Mapping[str, Kind] | None = None,
    ) -> None:
        """Pack all in one kind but the projections of these names, which have kinds of their own.

        What is in groups already stays in its form.
        """
        self.mixer = mixer
        self.has_mlp = bool(parts.gated)
        kinds = projection_kinds or {}
        runs = groupby(parts.mixer.projections, lambda place: _product_of(place, kinds.get(place.name, kind)))
        self.products: list[Product] = []
        first, *self._following = [self._pack(library, list(places), own) for (own, _), places in runs]
        for weight, after in pairwise([first, *self._following]):
            weight.native.next = addressof(after.native)
        self._packed = [first, self._pack(library, [parts.mixer.out], kind)]
        if parts.gated:
            gate, up, down = parts.gated
            self._packed.append(self._pack(library, [gate, up], kind, alternates=True))
            self._packed.append(self._pack(library, [down], kind))
        self._norms = [parts.mixer_norm, parts.mlp_norm]  # their weights are in use
        self.native = DecoderLayer(
            *(addressof(weight.native) for weight in self._packed),
            mixer_norm=native_norm(parts.mixer_norm),
            mlp_norm=native_norm(parts.mlp_norm),
            hidden_size=parts.mixer.out.module.out_features,
        )
        mixer.put_into(self.native)

    def _pack(
        self, library: Library, places: list[Place], kind: Kind, *, alternates: bool = False
    ) -> PackedWeight | GroupedWeight:
        packed = _packed(library, places, kind, alternates=alternates)
        self.products.append(Product(places, packed))
        return packed

    def stand_ins(self, library: Library) -> list[tuple[Place, nn.Module]]:
        """Return what the layer's own code can multiply with in place of what is not packed yet."""
        return [pair for product in self.products for pair in product.stand_ins(library)]

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in [*self._packed, *self._following])

    @property
    def weights(self) -> list[PackedWeight | GroupedWeight]:
        """Return all that is packed."""
        return [*self._packed, *self._following]

    def use_norms(self, *, are_zero_centred: bool) -> None:
        """Take the weights of norms as they are, or with 1 added."""
        for norm in (self.native.mixer_norm, self.native.mlp_norm, *self.mixer.norms):
            norm.is_zero_centred = are_zero_centred


class NativeDecoder(nn.Module):
    """Runs consecutive layers as one, (1, num_tokens, hidden_size) to the same, over the current step's caches."""

    def __init__(self, library: Library, layers: Sequence[NativeWeights]) -> None:
        super().__init__()
        self.layers = list(layers)
        self._library = library
        self._addresses = (c_void_p * len(layers))(*(addressof(layer.native) for layer in layers))
        self._with_states = [layer.mixer for layer in layers if not isinstance(layer.mixer, NativeAttention)]
        self.states = nn.ModuleList(mixer.states for mixer in self._with_states)
        self._served_by: PagedAttention | None = None
        self._attentions: Any = None
        self._segments = structures.Segments()

    @property
    def packed_bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *_positional: object,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **_unused: object,
    ) -> Tensor:
        assert attention_mask is None
        hidden = hidden_states[0]
        out = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
        call = DecoderCall(
            layers=addressof(self._addresses),
            attentions=addressof(self._attention_calls()),
            num_layers=len(self.layers),
            num_tokens=hidden.shape[0],
            hidden=hidden.data_ptr(),
            out=out.data_ptr(),
            hidden_stride=hidden.stride(0),
        )
        if self._with_states:
            call.segments = self._segments_of_step()
        if position_embeddings is not None:
            cosines, sines = (part[0] for part in position_embeddings)
            assert cosines.stride() == sines.stride()
            call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()
            call.rotary_stride, call.rotary_dim = cosines.stride(0), cosines.shape[1]
        self._library.decode(call)
        return out

    def _attention_calls(self) -> Any:
        """Return the layers' calls, the same in every step: what changes between steps is behind an address."""
        paged = current_step().attention
        assert isinstance(paged, PagedAttention)
        if paged is not self._served_by:
            calls = [_attention_call(paged, layer.mixer) for layer in self.layers]
            self._served_by, self._attentions = paged, (Attention * len(calls))(*calls)
        paged.set_native_step()
        return self._attentions

    def _segments_of_step(self) -> int:
        """Return the address of what the current step's sequences are, having found the layers' states."""
        segments, native = Segments.of(current_step()), self._segments
        highest = int(segments.slots.numpy().max())
        for mixer in self._with_states:
            mixer.find_states()
            assert highest < mixer.num_slots
        native.num_seqs = segments.slots.shape[0]
        native.query_start = segments.starts.data_ptr()
        native.slots, native.is_new = segments.slots.data_ptr(), segments.is_new.data_ptr()
        return addressof(native)


def _attention_call(paged: PagedAttention, mixer: NativeMixer) -> Attention:
    if not isinstance(mixer, NativeAttention):
        return Attention()
    return paged.native_call(mixer.module, mixer.spec, mixer.num_heads)


def take_names(native: nn.Module, layer: nn.Module) -> None:
    """Give a native layer what the model's code may read of the layer that it replaces."""
    for name, value in vars(layer).items():
        if not name.startswith("_") and name not in vars(native):
            setattr(native, name, value)


class NativeMixerLayer(nn.Module):
    """Runs a layer whose experts are the model's own code, what comes before them natively."""

    def __init__(self, decoder: NativeDecoder, parts: LayerParts) -> None:
        super().__init__()
        self.decoder = decoder
        self.norm = parts.mlp_norm
        self.mlp = parts.mlp

    def forward(self, hidden_states: Tensor, *positional: Any, **given: Any) -> Tensor:
        mixed: Tensor = self.decoder(hidden_states, *positional, **given)
        experts: Tensor = self.mlp(self.norm(mixed))
        return mixed + experts


def num_native_layers(model: nn.Module) -> int:
    """Return how many of the model's layers run natively, from one end to the other."""
    decoders = [module for module in model.modules() if isinstance(module, NativeDecoder)]
    return sum(layer.has_mlp for decoder in decoders for layer in decoder.layers)


def _product_of(place: Place, kind: Kind) -> tuple[Kind, nn.Module | JoinedLinears | None]:
    """Return the kind that a weight is to be packed in, and what it is a part of if it is packed already."""
    module = place.module
    if isinstance(module, LinearPart):
        return kind, module.joined
    return kind, module if isinstance(module, NativeLinear) else None


def _packed(
    library: Library, places: Sequence[Place], kind: Kind, *, alternates: bool = False
) -> PackedWeight | GroupedWeight:
    if (packed := packed_weight_of(places, alternates=alternates)) is not None:
        return packed
    weights = [_in_order(place.module.weight.detach(), place.order) for place in places]
    biases = [
        bias if (bias := place.module.bias) is None else _in_order(bias.detach(), place.order) for place in places
    ]
    packed = packed_weight(library, kind, weights, biases, alternates=alternates)
    if all(place.order is None for place in places):
        packed.sources = sources_of([place.module for place in places])
        return packed
    files = MappedFiles()  # of what was packed from a copy
    for place in places:
        files.release(place.module.weight)
    return packed


def _in_order(rows: Tensor, order: Tensor | None) -> Tensor:
    return rows.detach() if order is None else rows.detach()[order]
