"""Which decoder layers become native ones: those that our kernels compute as their own code does.

A layer is replaced if it has the usual parts and, on what the model's own first run fed it, our kernels give what its
own code gave. So there is no list of models: a layer that scales, clips or norms in a way of its own stays as its
author wrote it. Knows nothing of requests.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from orcinus.engine.attention.interface import AttentionSpec, LayerShape, PagedLayer, batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import PagedAttention, ProbingAttention
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.cpu.decoder_layers import NativeDecoder, NativeMixerLayer, NativeWeights, take_names
from orcinus.engine.cpu.layer_parts import (
    AttentionParts,
    DeltaNetParts,
    LayerParts,
    MixerParts,
    Place,
    is_in_groups,
    parts_of,
)
from orcinus.engine.cpu.native_linear import Kind
from orcinus.engine.cpu.token_mixers import NativeAttention, NativeConvolution, NativeDeltaNet, NativeMixer
from orcinus.engine.kernels.library import Library
from orcinus.engine.recurrent.binding import states_of

logger = logging.getLogger(__name__)

_SAMPLE_BLOCK = 16
# Of what a layer adds to its input: the noise of bfloat16, which tips over a few of the integers of 8 bits.
_TOLERANCE: dict[Kind, float] = {"bfloat16": 0.03, "int8": 0.06, "int4": 0.06, "int8-groups": 0.06}
# No position that the sample had: what a layer makes of it besides turning by its angles is seen.
_FAR_POSITION = 10_000_000


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """Holds what a layer was called with, (1, num_tokens, ...) each, and how much it added to that."""

    hidden: Tensor
    rotary: tuple[Tensor, Tensor] | None  # cosines and sines
    positional: tuple[Any, ...]  # behind the hidden states
    given: dict[str, Any]
    gain: float  # of the norms: what was added, over what it was added to


RecordedCalls = dict[nn.Module, RecordedCall]
# By attention module.
Attentions = dict[nn.Module, tuple[LayerShape, AttentionSpec]]


@contextmanager
def record_layer_calls(model: nn.Module) -> Iterator[RecordedCalls]:
    """Record what every layer that may be replaced is called with, until the context ends."""
    samples: RecordedCalls = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any], out: object) -> None:
        hidden = inputs[0] if inputs else given.get("hidden_states")
        rotary = given.get("position_embeddings")
        match rotary, hidden, out:
            case ((None | (Tensor(), Tensor())), Tensor(), Tensor()):
                others = {key: value for key, value in given.items() if key != "hidden_states"}
                gain = float((out.float() - hidden.float()).norm() / hidden.float().norm())
                samples[layer] = RecordedCall(hidden.clone(), rotary, inputs[1:], others, gain)

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
    attentions: Attentions,
    backend: NativeBackend,
    kind: Kind,
) -> int:
    """Put a `NativeDecoder` in place of each layer that it equals, packing one at a time. Returns how many.

    Of a layer with experts, it stands for what comes before these. Where all of a list's layers are native and turn by
    the same angles, one stands for all of them.
    """
    candidates = [  # no other module is named here: weights are to go when they are packed
        (Place(parent, name), parts_of(layer))
        for parent in model.modules()
        for name, layer in parent.named_children()
        if layer in samples
    ]
    count = 0
    for place, parts in tqdm(candidates, desc="Packing weights", disable=None, leave=False):
        layer: nn.Module = place.module
        if parts is None or not parts.fits():
            continue
        mixer = _native_mixer(parts.mixer, attentions, samples[layer])
        if mixer is None:
            continue
        native = _native_layer(layer, parts, mixer, samples[layer], backend=backend, kind=kind)
        if native is not None:
            _drop_projections(parts)
            stand_in = native if parts.gated else NativeMixerLayer(native, parts)
            take_names(stand_in, layer)
            setattr(place.owner, place.name, stand_in)
            count += 1
    if len({_places(sample.rotary) for sample in samples.values()}) == 1:
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
                take_names(joined, natives[0])
                setattr(parent, name, nn.ModuleList([joined]))


def _places(rotary: tuple[Tensor, Tensor] | None) -> tuple[int, ...]:
    return () if rotary is None else tuple(part.data_ptr() for part in rotary)


def _native_mixer(parts: MixerParts, attentions: Attentions, sample: RecordedCall) -> NativeMixer | None:
    """Return a native mixer of these parts, or None if our kernels cannot work with their types and sizes."""
    if isinstance(parts, AttentionParts):
        shape, spec = attentions.get(parts.module, (None, None))
        if shape is None or spec is None or spec.sinks is not None:
            return None
        return NativeAttention(parts, shape, spec) if parts.fits(shape) and _can_rotate(sample, shape) else None
    states = states_of(parts.module)
    if states is None or not parts.fits():
        return None
    return NativeDeltaNet(parts, states) if isinstance(parts, DeltaNetParts) else NativeConvolution(parts, states)


def _native_layer(
    layer: nn.Module,
    parts: LayerParts,
    mixer: NativeMixer,
    sample: RecordedCall,
    *,
    backend: NativeBackend,
    kind: Kind,
) -> NativeDecoder | None:
    """Return a native layer that computes what this one does, or None."""
    weights = None if kind == "bfloat16" else NativeWeights(parts, mixer, backend.library, kind)
    trial = _trial(layer, parts, sample, [] if weights is None else weights.stand_ins(backend.library))
    if trial is None:
        return None
    hidden, wanted = trial
    weights = weights or NativeWeights(parts, mixer, backend.library, kind)
    native = NativeDecoder(backend.library, [weights])
    is_grouped = any(is_in_groups(place.module) for place in parts.linears)
    tolerance = max(_TOLERANCE[kind], _TOLERANCE["int8-groups"] if is_grouped else 0.0)
    errors = []
    for are_zero_centred in (False, True):
        weights.use_norms(are_zero_centred=are_zero_centred)
        out = _run(native, mixer, replace(sample, hidden=hidden), backend)
        errors.append(_error(out, wanted, hidden))
        if errors[-1] <= tolerance:
            return native
    logger.debug("%s stays as it is: native, it differs by %.2g", type(layer).__name__, min(errors))
    return None


def _trial(
    layer: nn.Module, parts: LayerParts, sample: RecordedCall, stand_ins: Sequence[tuple[Place, nn.Module]]
) -> tuple[Tensor, Tensor] | None:
    """Return hidden states so small that rounding keeps what the layer adds, and what its own code makes of them.

    Of a layer with experts, what it makes of them before these. None if they are not added to that. With stand-ins for
    its products, it multiplies with the rounded weights that the native layer has, so that both are comparable.
    """
    hidden = sample.hidden * min(1.0, sample.gain)
    given = dict(sample.given)
    if isinstance(given.get("position_ids"), Tensor):
        given["position_ids"] = given["position_ids"] + _FAR_POSITION
    with (
        step_context(StepContext(ProbingAttention())),
        _replaced(stand_ins),
        _noted_calls(parts.mlp_norm) as norms,
        _noted_calls(parts.mlp) as mlps,
    ):
        out = layer(hidden, *sample.positional, **given)
    if parts.gated:
        return hidden, out
    match norms, mlps:
        case [((Tensor() as mixed,), normed)], [((given_to_experts,), Tensor() as added)]:
            is_added = given_to_experts is normed and torch.equal(mixed + added, out)
            return (hidden, mixed) if is_added else None
    return None


@contextmanager
def _noted_calls(module: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], Any]]]:
    """Note each call of a module until the context ends: all that it was given, and what it returned."""
    calls: list[tuple[tuple[Any, ...], Any]] = []

    def note(_: nn.Module, positional: tuple[Any, ...], given: dict[str, Any], out: Any) -> None:
        calls.append(((*positional, *given.values()), out))

    hook = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def _replaced(stand_ins: Sequence[tuple[Place, nn.Module]]) -> Iterator[None]:
    """Have other modules in the places of some, until the context ends."""
    own = [place.module for place, _ in stand_ins]
    try:
        for place, stand_in in stand_ins:
            setattr(place.owner, place.name, stand_in)
        yield
    finally:
        for (place, _), module in zip(stand_ins, own, strict=True):
            setattr(place.owner, place.name, module)


def _can_rotate(sample: RecordedCall, shape: LayerShape) -> bool:
    if sample.rotary is None:
        return False
    cosines = sample.rotary[0]
    rotary_dim = cosines.shape[-1]
    return (
        rotary_dim % 32 == 0
        and rotary_dim <= shape.key_dim
        and cosines.dtype is torch.bfloat16
        and cosines.shape[0] == 1
    )


def _run(native: NativeDecoder, mixer: NativeMixer, sample: RecordedCall, backend: NativeBackend) -> Tensor:
    """Return what the native layer makes of the recorded tokens, in two chunks."""
    num_tokens = sample.hidden.shape[1]
    table = np.arange(-(-num_tokens // _SAMPLE_BLOCK), dtype=np.int32).reshape(1, -1)
    cpu = torch.device("cpu")
    paged = PagedAttention(backend, _scratch_memory(mixer, table.size, backend))
    outputs = []
    for first, end in pairwise((0, num_tokens // 2 + 1, num_tokens)):
        metadata = batch_metadata([(first, end)], table, _SAMPLE_BLOCK, cpu)
        rotary = None if sample.rotary is None else (sample.rotary[0][:, first:end], sample.rotary[1][:, first:end])
        with step_context(StepContext(paged, (metadata,), state_slots=torch.zeros(1, dtype=torch.int64))):
            outputs.append(native(sample.hidden[:, first:end], position_embeddings=rotary))
    return torch.cat(outputs, dim=1)


def _scratch_memory(mixer: NativeMixer, num_blocks: int, backend: NativeBackend) -> dict[nn.Module, PagedLayer]:
    """Return the cache of an attention; states have a slot with anything but numbers in it."""
    if isinstance(mixer, NativeAttention):
        cache = backend.allocate(mixer.shape, num_blocks, _SAMPLE_BLOCK, torch.bfloat16, torch.device("cpu"))
        return {mixer.module: PagedLayer(cache)}
    mixer.states.take_memory(torch.full((1, mixer.states.bytes_per_slot), 0xFF, dtype=torch.uint8))
    return {}


def _error(out: Tensor, wanted: Tensor, hidden: Tensor) -> float:
    """Return how far the output is off, relative to what the layer adds to its input."""
    added = float((wanted.float() - hidden.float()).norm())
    return float((out.float() - wanted.float()).norm()) / max(added, 1e-30)
