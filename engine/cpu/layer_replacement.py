"""Which decoder layers become native ones: those that our kernels compute as their own code does.

A layer is replaced if it has the usual parts and, on what the model's own first run fed it, our kernels give what its
own code gave. So there is no list of models: a layer that scales, clips or norms in a way of its own stays as its
author wrote it. Knows nothing of requests.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from orcinus.engine.attention.interface import AttentionSpec, LayerShape, PagedLayer, batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import PagedAttention, ProbingAttention
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.cpu.decoder_layers import NativeDecoder, NativeWeights
from orcinus.engine.cpu.int8_linear import Int8Linear
from orcinus.engine.cpu.layer_parts import LayerParts, Place, fits_kernels, parts_of
from orcinus.engine.cpu.native_linear import Kind
from orcinus.engine.kernels.library import Library

logger = logging.getLogger(__name__)

_SAMPLE_BLOCK = 16
# Of what a layer adds to its input: the noise of bfloat16, which tips over a few of the integers of 8 bits.
_TOLERANCE: dict[Kind, float] = {"bfloat16": 0.03, "int8": 0.06}
# No position that the sample had: what a layer makes of it besides turning by its angles is seen.
_FAR_POSITION = 10_000_000


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """Holds what a layer was called with, (1, num_tokens, ...) each, and how much it added to that."""

    hidden: Tensor
    cosines: Tensor
    sines: Tensor
    given: dict[str, Any]
    gain: float  # of the norms: what was added, over what it was added to


RecordedCalls = dict[nn.Module, RecordedCall]


@contextmanager
def record_layer_calls(model: nn.Module) -> Iterator[RecordedCalls]:
    """Record what every layer that may be replaced is called with, until the context ends."""
    samples: RecordedCalls = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any], out: object) -> None:
        hidden = inputs[0] if inputs else given.get("hidden_states")
        match given.get("position_embeddings"), hidden, out:
            case (Tensor() as cosines, Tensor() as sines), Tensor(), Tensor():
                others = {key: value for key, value in given.items() if key != "hidden_states"}
                gain = float((out.float() - hidden.float()).norm() / hidden.float().norm())
                samples[layer] = RecordedCall(hidden.clone(), cosines, sines, others, gain)

    candidates = [module for module in model.modules() if parts_of(module) is not None]
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in candidates]
    try:
        yield samples
    finally:
        for hook in hooks:
            hook.remove()


def replace_layers(
    model: nn.Module,
    samples: RecordedCalls,
    attentions: dict[nn.Module, tuple[LayerShape, AttentionSpec]],
    backend: NativeBackend,
    kind: Kind,
) -> int:
    """Put a `NativeDecoder` in place of each layer that it equals, packing one at a time. Returns how many.

    Where all of a list's layers are native and turn by the same angles, one stands for all of them.
    """
    places = [(parent, name, layer) for parent in model.modules() for name, layer in parent.named_children()]
    candidates = [(Place(parent, name), parts_of(layer)) for parent, name, layer in places if layer in samples]
    count = 0
    for place, parts in tqdm(candidates, desc="Packing weights", disable=None, leave=False):
        layer: nn.Module = place.module
        if parts is None or parts.attention not in attentions:
            continue
        native = _native_layer(layer, parts, samples[layer], *attentions[parts.attention], backend=backend, kind=kind)
        if native is not None:
            _drop_projections(parts)
            native.take_names_of(layer)
            setattr(place.owner, place.name, native)
            count += 1
    if len({(sample.cosines.data_ptr(), sample.sines.data_ptr()) for sample in samples.values()}) == 1:
        _join_lists(model, backend.library)
    return count


def _drop_projections(parts: LayerParts) -> None:
    """Free the weights now: the layer itself is named until the last one is packed."""
    for place in parts.linears:
        delattr(place.owner, place.name)


def _join_lists(model: nn.Module, library: Library) -> None:
    for parent in list(model.modules()):
        for name, layers in list(parent.named_children()):
            if not isinstance(layers, nn.ModuleList) or len(layers) < 2:
                continue
            natives = [layer for layer in layers if isinstance(layer, NativeDecoder)]
            if len(natives) == len(layers):
                joined = NativeDecoder(library, [weights for native in natives for weights in native.layers])
                joined.take_names_of(natives[0])
                setattr(parent, name, nn.ModuleList([joined]))


def _native_layer(
    layer: nn.Module,
    parts: LayerParts,
    sample: RecordedCall,
    shape: LayerShape,
    spec: AttentionSpec,
    *,
    backend: NativeBackend,
    kind: Kind,
) -> NativeDecoder | None:
    """Return a native layer that computes what this one does, or None."""
    if not fits_kernels(parts, shape) or not _can_rotate(sample, shape) or spec.sinks is not None:
        return None
    hidden, wanted = _trial(layer, parts, sample, kind)
    weights = NativeWeights(parts, shape, spec, backend.library, kind)
    native = NativeDecoder(backend.library, [weights])
    errors = []
    for are_zero_centred in (False, True):
        weights.use_norms(are_zero_centred=are_zero_centred)
        error = _error(native, parts.attention, replace(sample, hidden=hidden), wanted, shape, backend=backend)
        if error <= _TOLERANCE[kind]:
            return native
        errors.append(error)
    logger.debug("%s stays as it is: native, it differs by %.2g", type(layer).__name__, min(errors))
    return None


def _trial(layer: nn.Module, parts: LayerParts, sample: RecordedCall, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return hidden states so small that rounding keeps what the layer adds, and what its own code makes of them."""
    hidden = sample.hidden * min(1.0, sample.gain)
    given = dict(sample.given)
    if isinstance(given.get("position_ids"), Tensor):
        given["position_ids"] = given["position_ids"] + _FAR_POSITION
    with step_context(StepContext(ProbingAttention())), _quantized(parts.linears) if kind == "int8" else nullcontext():
        return hidden, layer(hidden, **given)


@contextmanager
def _quantized(places: Sequence[Place]) -> Iterator[None]:
    """Let the layer's own code multiply in 8 bits, until the context ends."""
    plain = [place.module for place in places]
    try:
        for place, linear in zip(places, plain, strict=True):
            setattr(place.owner, place.name, Int8Linear([linear.weight], [linear.bias]))
        yield
    finally:
        for place, linear in zip(places, plain, strict=True):
            setattr(place.owner, place.name, linear)


def _can_rotate(sample: RecordedCall, shape: LayerShape) -> bool:
    rotary_dim = sample.cosines.shape[-1]
    return (
        rotary_dim % 32 == 0
        and rotary_dim <= shape.key_dim
        and sample.cosines.dtype is torch.bfloat16
        and sample.cosines.shape[0] == 1
    )


def _error(
    native: NativeDecoder,
    attention: nn.Module,
    sample: RecordedCall,
    wanted: Tensor,
    shape: LayerShape,
    *,
    backend: NativeBackend,
) -> float:
    """Return how far the layer is off, relative to what it adds to its input."""
    num_tokens = sample.hidden.shape[1]
    table = np.arange(-(-num_tokens // _SAMPLE_BLOCK), dtype=np.int32).reshape(1, -1)
    cpu = torch.device("cpu")
    cache = backend.allocate(shape, table.size, _SAMPLE_BLOCK, torch.bfloat16, cpu)
    paged = PagedAttention(backend, {attention: PagedLayer(cache)})
    metadata = batch_metadata([(0, num_tokens)], table, _SAMPLE_BLOCK, cpu)
    with step_context(StepContext(paged, (metadata,))):
        out = native(sample.hidden, position_embeddings=(sample.cosines, sample.sines)).float()
    added = float((wanted.float() - sample.hidden.float()).norm())
    return float((out - wanted.float()).norm()) / max(added, 1e-30)
