"""Runs a freshly loaded model a few times before it serves: its shapes, whether it can be served, what it needs.

Every check here holds for models that no list knows, remote code included. These runs are the warm-up too.
"""

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orcinus.engine.attention.cache import allocate_cache, bytes_per_block, stored_dtype
from orcinus.engine.attention.choice import LayerKind, choose_backend
from orcinus.engine.attention.interface import AttentionBackend, AttentionSpec, KVCacheSpec, batch_metadata
from orcinus.engine.attention.latent import Expansion, cache_latents, record_expansions
from orcinus.engine.attention.serving import LaterCall, PagedAttention, ProbingAttention, UnsupportedAttentionError
from orcinus.engine.attention.step_context import SlotState, StepContext, step_context
from orcinus.engine.cpu.layer_replacement import RecordedCalls, record_layer_calls
from orcinus.engine.cpu.packed_linear import num_packed_parameters, packed_bytes
from orcinus.engine.errors import ModelLoadError, reason_of
from orcinus.engine.models.context import has_fixed_rope, has_open_context, model_context
from orcinus.engine.models.indexers import pick_every_key
from orcinus.engine.models.language_model import LanguageModel
from orcinus.engine.models.own_attention import is_vouched_for, own_attention
from orcinus.engine.recurrent.states import StatePool
from orcinus.engine.scheduler.cache_groups import GroupCost

logger = logging.getLogger(__name__)

PROBE_TOKENS = 12
# Relative error of the logits. Chunks of other sizes round differently, and in low precision a router may tip over.
_TOLERANCE = {torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.3


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Holds a loaded model and how its attention is served. `expected_logits` are those of the probe's tokens."""

    model: LanguageModel
    num_parameters: int
    weight_bytes: int
    backend: AttentionBackend
    kv: dict[nn.Module, KVCacheSpec]  # in the order in which the layers run
    specs: dict[nn.Module, AttentionSpec]
    recorded_calls: RecordedCalls
    cache_dtype: torch.dtype  # what keys and values are computed in
    max_context: int
    has_open_context: bool  # a longer one may be asked for
    states: list[SlotState]  # the model's modules that keep states
    expected_logits: Tensor

    @property
    def stored_dtype(self) -> torch.dtype:
        """Return what keys and values are stored in."""
        return stored_dtype(self.backend, self.cache_dtype)


def probe_model(
    causal_lm: Any, device: torch.device, *, block_size: int | None = None, caches_latents: bool = True
) -> ServedModel:
    """Find the attention layers and their shapes by running them, which also brings the weights into memory.

    `block_size` as in `choose_backend`. With `caches_latents`, layers on a CPU that expand keys and values of latents
    cache these instead. Raises `ModelLoadError` for attention that a paged cache cannot serve.
    """
    model = LanguageModel(causal_lm)
    own = _own_logits(model, device)
    pick_every_key(causal_lm)
    run = _first_run(model, device)
    if model.mtp_head is not None:
        run = _with_mtp_run(model, run, device)
    probe = run.attention
    states = [module for module in causal_lm.modules() if isinstance(module, SlotState)]
    if not probe.kv and not states:
        raise ModelLoadError(f"{model.name} does not attend through transformers' attention interface")
    cache_dtype = probe.dtype or causal_lm.dtype
    precision = None if packed_bytes(causal_lm) else cache_dtype
    if own is not None and not _agree(run.logits, own, precision):
        raise ModelLoadError(
            f"{model.name} attends by more than it tells transformers' attention interface: by that alone its logits "
            "are others than with its own attention"
        )
    if any(isinstance(key, LaterCall) for key in probe.kv):
        _check_calls(model, run.logits, precision, device)
    num_parameters = int(causal_lm.num_parameters()) + num_packed_parameters(causal_lm)
    kv = _with_latents(probe.kv, run.expansions) if caches_latents and device.type == "cpu" else probe.kv
    windows = {spec.window for spec in probe.specs.values()}
    layers = [LayerKind(probe.num_heads[module], spec.shape, probe.specs[module]) for module, spec in kv.items()]
    return ServedModel(
        model=model,
        num_parameters=num_parameters,
        weight_bytes=int(causal_lm.get_memory_footprint()),
        backend=choose_backend(device, cache_dtype, layers, block_size),
        kv=kv,
        specs=probe.specs,
        recorded_calls=run.calls,
        cache_dtype=cache_dtype,
        max_context=model_context(model.config, windows, is_fixed=has_fixed_rope(causal_lm)),
        has_open_context=has_open_context(model.config, windows),
        states=states,
        expected_logits=run.logits,
    )


@dataclass(frozen=True, slots=True)
class _FirstRun:
    """Holds what a model's run over the probe's tokens shows."""

    logits: Tensor
    attention: ProbingAttention
    calls: RecordedCalls
    expansions: dict[nn.Module, Expansion]


def _first_run(model: LanguageModel, device: torch.device) -> _FirstRun:
    """Run the model whole, attending through the interface. Raises `ModelLoadError`."""
    probe, causal_lm = ProbingAttention(), model.causal_lm
    try:
        with (
            step_context(StepContext(probe)),
            record_layer_calls(causal_lm) as calls,
            record_expansions(causal_lm) as expansions,
        ):
            logits = model.whole_logits(*_probe_tokens(model, device)).float()
    except UnsupportedAttentionError as error:
        raise ModelLoadError(f"{model.name} cannot be served, because {error}") from error
    except Exception as error:  # a configuration that its own code cannot run, or code that asks for more
        raise _failed(model, error) from error
    return _FirstRun(logits, probe, calls, expansions)


def _with_mtp_run(model: LanguageModel, run: _FirstRun, device: torch.device) -> _FirstRun:
    """Add what the run of a head for multi-token prediction shows, behind that of the model.

    A head that cannot run so is dropped, as the model does without.
    """
    probe, (token_ids, positions) = ProbingAttention(), _probe_tokens(model, device)
    try:
        with step_context(StepContext(ProbingAttention())):
            hidden = model.hidden_states(token_ids, positions)
        assert model.mtp_head is not None
        with (
            step_context(StepContext(probe)),
            record_layer_calls(model.mtp_head) as calls,
            record_expansions(model.mtp_head) as expansions,
        ):
            states = model.mtp_states(token_ids.roll(-1), hidden, positions)
        if not bool(torch.isfinite(states).all()):
            raise ValueError("what it computes is not finite")
    except Exception as error:
        model.drop_mtp_head()
        logger.warning("the checkpoint's MTP head is not used: its first run failed: %s", reason_of(error))
        return run
    run.attention.take_in(probe)
    return replace(run, calls=run.calls | calls, expansions=run.expansions | expansions)


def _failed(model: LanguageModel, error: Exception) -> ModelLoadError:
    return ModelLoadError(f"the first run of {model.name}, on text alone, failed: {reason_of(error)}")


def _with_latents(
    kv: dict[nn.Module, KVCacheSpec], expansions: dict[nn.Module, Expansion]
) -> dict[nn.Module, KVCacheSpec]:
    """Have each layer cache its latents in place of keys and values, where that can be: it runs once, for itself."""
    shared = {spec.source for spec in kv.values()} | {key.layer for key in kv if isinstance(key, LaterCall)}
    specs = dict(kv)
    for module, expansion in expansions.items():
        if module in kv and kv[module].source is None and module not in shared:
            weights = cache_latents(module, expansion)
            if weights is not None:
                specs[module] = replace(kv[module], shape=weights.shape, latents=weights)
    return specs


def cache_groups(
    served: ServedModel, block_size: int, max_len: int
) -> tuple[dict[nn.Module, KVCacheSpec], list[GroupCost]]:
    """Return each layer's group, and what a block costs in each group.

    The first group keeps everything, and may be without layers. There is one for each window that is shorter than
    `max_len` tokens, which is all that a sequence can have.
    """
    windows = {module: _kept_tokens(spec, max_len) for module, spec in served.specs.items()}
    ordered = [None, *sorted({window for window in windows.values() if window is not None})]
    specs = {module: replace(spec, group=ordered.index(windows[module])) for module, spec in served.kv.items()}
    costs = []
    for group, window in enumerate(ordered):
        stored = [spec for spec in specs.values() if spec.group == group and spec.source is None]
        costs.append(GroupCost(len(stored), bytes_per_block(stored, block_size, served.stored_dtype), window))
    return specs, costs


def _kept_tokens(spec: AttentionSpec, max_len: int) -> int | None:
    return spec.window if spec.window is not None and spec.window < max_len else None


def check_paged(served: ServedModel, block_size: int, device: torch.device, *, is_quantized: bool = False) -> Tensor:
    """Run the probe's sequence again, in chunks beside another one, and return its logits, which must agree.

    This finds what no flag tells: state outside attention, positions that are ignored, tokens of different
    requests that touch. Raises `ModelLoadError`.
    """
    model, expected = served.model, served.expected_logits
    num_before = model.num_replays
    try:
        logits = paged_probe_logits(served, PROBE_CHUNKS, block_size, device)
    except Exception as error:
        raise ModelLoadError(f"{model.name} cannot run from a paged cache: {reason_of(error)}") from error
    if model.num_replays - num_before != len(PROBE_CHUNKS):
        raise ModelLoadError(f"{model.name} computes its logits in a way that cannot be served")
    if not _agree(logits, expected, None if is_quantized else served.cache_dtype):
        raise ModelLoadError(
            f"{model.name} computes something else when its tokens come in chunks (relative error "
            f"{relative_error(logits, expected):.2g}): it keeps state outside attention, and cannot be served from a "
            "paged cache"
        )
    return logits


def expect_own_logits(served: ServedModel, block_size: int, device: torch.device) -> ServedModel:
    """Expect what the model computes of the probe's sequence in one piece now, whatever it was when it was loaded.

    To be checked beforehand as it was loaded: weights of very few bits move logits by more than what is to be found.
    """
    whole = paged_probe_logits(served, [[(0, 0), (0, PROBE_TOKENS)]], block_size, device)
    return replace(served, expected_logits=whole)


def _own_logits(model: LanguageModel, device: torch.device) -> Tensor | None:
    """Return what the model computes with its own attention; None where its class vouches for the interface."""
    if is_vouched_for(type(model.causal_lm)):
        return None
    try:
        with own_attention(model.causal_lm), step_context(StepContext(ProbingAttention())):
            return model.whole_logits(*_probe_tokens(model, device)).float()
    except Exception as error:
        raise _failed(model, error) from error


def _check_calls(model: LanguageModel, expected: Tensor, dtype: torch.dtype | None, device: torch.device) -> None:
    """Refuse a model that runs layers several times unless its own cache, too, has what each of these runs stored."""
    with own_attention(model.causal_lm), step_context(StepContext(ProbingAttention())):
        cached = model.cached_logits(*_probe_tokens(model, device), split=PROBE_TOKENS // 2).float()
    if not _agree(cached, expected, dtype):
        raise ModelLoadError(
            f"{model.name} runs one attention layer more than once per token, and with a cache it computes something "
            "else than without one"
        )


def _agree(logits: Tensor, expected: Tensor, dtype: torch.dtype | None) -> bool:
    """Return whether logits are the same but for rounding in this dtype; None is for weights of lower precision."""
    tolerance = _LOW_PRECISION_TOLERANCE if dtype is None else _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE)
    return relative_error(logits, expected) <= tolerance


def relative_error(logits: Tensor, expected: Tensor) -> float:
    """Return the norm of the error relative to that of what is expected."""
    return float(torch.linalg.vector_norm(logits - expected) / torch.linalg.vector_norm(expected))


# Per chunk, the positions of the other sequence and of the probe's own; single tokens last.
PROBE_CHUNKS = [[(0, 4), (0, 5)], [(4, 11), (5, 11)], [(11, 12), (11, 12)]]


def paged_probe_logits(
    served: ServedModel, chunks: list[list[tuple[int, int]]], block_size: int, device: torch.device
) -> Tensor:
    """Return the logits (num_tokens, vocab_size) of the probe's sequence, from a paged cache, chunk by chunk.

    A chunk has the positions of another sequence, which may be none, and those of the probe's own.
    """
    token_ids, positions = _probe_tokens(served.model, device)
    num_blocks = math.ceil(PROBE_TOKENS / block_size)
    attention = _scratch_attention(served, 2 * num_blocks, block_size, device)
    tables = np.arange(2 * num_blocks, dtype=np.int32).reshape(2, num_blocks)
    state_slots = allocate_states(served, 2, device)
    logits = []
    for spans in chunks:
        rows = [i for i, (first, end) in enumerate(spans) if first < end]
        metadata = batch_metadata([spans[i] for i in rows], tables[rows], block_size, device)
        other, own = (slice(*span) for span in spans)
        with step_context(StepContext(attention, (metadata,), state_slots=state_slots[rows])):
            hidden = served.model.hidden_states(
                torch.cat([token_ids.flip(0)[other], token_ids[own]]),
                torch.cat([positions[other], positions[own]]),
            )
        logits.append(served.model.logits(hidden[other.stop - other.start :]).float())
    return torch.cat(logits)


def allocate_states(served: ServedModel, num_slots: int, device: torch.device) -> Tensor:
    """Make room for the states of so many sequences; returns their slots."""
    StatePool(served.states, num_slots, device=device)
    return torch.arange(num_slots, device=device)


def _scratch_attention(served: ServedModel, num_blocks: int, block_size: int, device: torch.device) -> PagedAttention:
    layers = allocate_cache(
        served.backend, served.kv, [num_blocks], block_size, dtype=served.cache_dtype, device=device
    )
    return PagedAttention(served.backend, layers)


def _probe_tokens(model: LanguageModel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and positions, (num_tokens,) each, of tokens that all stand for text."""
    markers = _marker_ids(model.causal_lm.config) | _marker_ids(model.config)
    candidates = ((i * 37 + 5) % model.vocab_size for i in range(PROBE_TOKENS + len(markers)))
    token_ids = [token for token in candidates if token not in markers][:PROBE_TOKENS]
    return torch.tensor(token_ids, device=device), torch.arange(PROBE_TOKENS, device=device)


def _marker_ids(config: Any) -> set[int]:
    """Return the tokens that a configuration names, of which some stand for images and sounds."""
    named = [value for name, value in vars(config).items() if name.endswith(("_token_id", "_token_index"))]
    return {value for value in named if isinstance(value, int)}
