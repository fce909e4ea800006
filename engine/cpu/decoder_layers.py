"""Decoder layers of the Llama family as one native call: norms, projections, rotary positions, attention, MLP.

A layer is replaced if it has the family's parts and, on what the model's own first run fed it, our kernels give what
its own code gave. So there is no list of models: a layer that scales, clips or norms in a way of its own stays as its
author wrote it. Knows nothing of requests; where keys and values lie comes from the attention that answers.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from ctypes import addressof, c_void_p
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from orcinus.engine.attention.interface import AttentionSpec, LayerShape, PagedLayer, batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import PagedAttention, ProbingAttention
from orcinus.engine.attention.step_context import StepContext, current_step, step_context
from orcinus.engine.cpu.int8_linear import Int8Linear
from orcinus.engine.cpu.native_linear import Kind, PackedWeight
from orcinus.engine.kernels.library import Library
from orcinus.engine.kernels.structures import Attention, DecoderCall, DecoderLayer

logger = logging.getLogger(__name__)

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("q_norm", "k_norm")
_MOST_HIDDEN = 16384  # MOST_HIDDEN of decoder.cpp
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

    candidates = [module for module in model.modules() if {name for name, _ in module.named_children()} == _PARTS]
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
    places = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if layer in samples and getattr(layer, "self_attn", None) in attentions
    ]
    count = 0
    for parent, name, layer in tqdm(places, desc="Packing weights", disable=None, leave=False):
        attention: Any = layer.self_attn
        native = _native_layer(layer, samples[layer], *attentions[attention], backend=backend, kind=kind)
        if native is not None:
            _drop_projections(layer)
            native.take_names_of(layer)
            setattr(parent, name, native)
            count += 1
    if len({(sample.cosines.data_ptr(), sample.sines.data_ptr()) for sample in samples.values()}) == 1:
        _join_lists(model, backend.library)
    return count


def _drop_projections(layer: Any) -> None:
    """Free the weights now: the layer itself is named until the last one is packed."""
    for owner, names in ((layer.self_attn, _PROJECTIONS), (layer.mlp, _MLP)):
        for name in names:
            delattr(owner, name)


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


def num_native_layers(model: nn.Module) -> int:
    """Return how many of the model's layers run natively."""
    return sum(len(module.layers) for module in model.modules() if isinstance(module, NativeDecoder))


class NativeWeights:
    """Holds the packed weights of one layer; its attention module is the key to its cache."""

    def __init__(self, layer: Any, shape: LayerShape, spec: AttentionSpec, library: Library, kind: Kind) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention: nn.Module = attention
        self.spec = spec
        self.num_heads = attention.q_proj.out_features // shape.key_dim
        self._qkv = _packed(library, [attention.q_proj, attention.k_proj, attention.v_proj], kind)
        self._out = _packed(library, [attention.o_proj], kind)
        self._gate_up = _packed(library, [mlp.gate_proj, mlp.up_proj], kind, alternates=True)
        self._down = _packed(library, [mlp.down_proj], kind)
        head_norms = [getattr(attention, name, None) for name in _HEAD_NORMS]
        self._norms = [getattr(layer, name) for name in _NORMS] + head_norms
        self.native = self._structure(shape.key_dim)

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in (self._qkv, self._out, self._gate_up, self._down))

    def _structure(self, head_dim: int) -> DecoderLayer:
        weights = [None if norm is None else norm.weight.data_ptr() for norm in self._norms]
        eps = [0.0 if norm is None else _eps(norm) for norm in self._norms]
        return DecoderLayer(
            qkv=addressof(self._qkv.native),
            attention_out=addressof(self._out.native),
            gate_up=addressof(self._gate_up.native),
            down=addressof(self._down.native),
            attention_norm=weights[0],
            mlp_norm=weights[1],
            query_norm=weights[2],
            key_norm=weights[3],
            attention_eps=eps[0],
            mlp_eps=eps[1],
            query_eps=eps[2],
            key_eps=eps[3],
            hidden_size=self._out.out_features,
            num_heads=self.num_heads,
            head_dim=head_dim,
        )


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


def _packed(library: Library, linears: list[nn.Linear], kind: Kind, *, alternates: bool = False) -> PackedWeight:
    weights = [linear.weight.detach() for linear in linears]
    biases = [None if linear.bias is None else linear.bias.detach() for linear in linears]
    return PackedWeight(library, kind, weights, biases, alternates=alternates)


def _linears(layer: Any) -> list[nn.Linear]:
    return [getattr(layer.self_attn, name) for name in _PROJECTIONS] + [getattr(layer.mlp, name) for name in _MLP]


def _eps(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


def _native_layer(
    layer: Any, sample: RecordedCall, shape: LayerShape, spec: AttentionSpec, *, backend: NativeBackend, kind: Kind
) -> NativeDecoder | None:
    """Return a native layer that computes what this one does, or None."""
    if not _has_the_parts(layer, shape) or not _can_rotate(sample, shape) or spec.sinks is not None:
        return None
    hidden, wanted = _trial(layer, sample, kind)
    native = NativeDecoder(backend.library, [NativeWeights(layer, shape, spec, backend.library, kind)])
    error = _error(native, layer.self_attn, replace(sample, hidden=hidden), wanted, shape, backend=backend)
    if error <= _TOLERANCE[kind]:
        return native
    logger.debug("%s stays as it is: native, it differs by %.2g", type(layer).__name__, error)
    return None


def _trial(layer: Any, sample: RecordedCall, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return hidden states so small that rounding keeps what the layer adds, and what its own code makes of them."""
    hidden = sample.hidden * min(1.0, sample.gain)
    given = dict(sample.given)
    if isinstance(given.get("position_ids"), Tensor):
        given["position_ids"] = given["position_ids"] + _FAR_POSITION
    with step_context(StepContext(ProbingAttention())), _quantized(layer) if kind == "int8" else nullcontext():
        return hidden, layer(hidden, **given)


@contextmanager
def _quantized(layer: Any) -> Iterator[None]:
    """Let the layer's own code multiply in 8 bits, until the context ends."""
    owners = [layer.self_attn] * len(_PROJECTIONS) + [layer.mlp] * len(_MLP)
    plain = _linears(layer)
    try:
        for owner, name, linear in zip(owners, _PROJECTIONS + _MLP, plain, strict=True):
            setattr(owner, name, Int8Linear([linear.weight], [linear.bias]))
        yield
    finally:
        for owner, name, linear in zip(owners, _PROJECTIONS + _MLP, plain, strict=True):
            setattr(owner, name, linear)


def _has_the_parts(layer: Any, shape: LayerShape) -> bool:
    try:
        linears = _linears(layer)
        norms = [getattr(layer, name) for name in _NORMS]
        norms += [norm for name in _HEAD_NORMS if (norm := getattr(layer.self_attn, name, None)) is not None]
        widths = [norm.weight.numel() for norm in norms]
        eps = [_eps(norm) for norm in norms]
    except AttributeError:
        return False
    if any(type(linear) is not nn.Linear or linear.weight.dtype is not torch.bfloat16 for linear in linears):
        return False
    if any(norm.weight.dtype is not torch.bfloat16 or not norm.weight.is_contiguous() for norm in norms) or not all(
        eps
    ):
        return False
    query, key, value, out, gate, up, down = linears
    hidden, head_dim, num_kv_heads = query.in_features, shape.key_dim, shape.num_kv_heads
    return (
        shape.value_dim == head_dim
        and key.out_features == value.out_features == num_kv_heads * head_dim
        and query.out_features == out.in_features
        and query.out_features % (num_kv_heads * head_dim) == 0
        and gate.out_features == up.out_features == down.in_features
        and gate.out_features % 16 == 0
        and all(linear.in_features == hidden for linear in (key, value, gate, up))
        and out.out_features == down.out_features == hidden <= _MOST_HIDDEN
        and widths == [hidden, hidden] + [head_dim] * (len(widths) - 2)
    )


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
