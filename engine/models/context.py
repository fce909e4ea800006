"""How many tokens of context a model has, by its configuration: positions, rotary scaling, sliding windows.

Computes over configurations, and fixes rotary angles where a context was asked for that needs it. Loads nothing.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from orcinus.engine.models.indexers import most_indexed_keys

logger = logging.getLogger(__name__)

_FALLBACK_CONTEXT = 2048
# Rotary embeddings that depend on the longest sequence of the batch beyond the original context.
_BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}
_FIXED_ROPE = "fixed"  # what `fix_rope` calls those that it has changed
_OLD_NAMES = {"su": "longrope"}


@dataclass(frozen=True, slots=True)
class RopeContext:
    """Says how far rotary positions reach: `usual` as they are, `longest` once `fix_rope` has fixed the angles."""

    usual: int
    longest: int


def rope_context(text_config: Any) -> RopeContext:
    """Return how far the model's positions reach, rotary scaling included, as vLLM and transformers read it.

    YaRN scales the original context by its factor, and so do linear and dynamic scaling, whose original context is the
    configuration's. Longrope and Llama 3's scaling leave it to the configuration to say how far they reach, unless that
    is just the original context. Scaling of some layers alone (Gemma 3) is in the configuration's context. A
    configuration that states less than the original context means it.
    """
    stated = getattr(text_config, "max_position_embeddings", None) or _FALLBACK_CONTEXT
    usual = longest = int(stated)
    for parameters, is_for_all_layers in _scalings(text_config):
        kind = _kind(parameters)
        original = int(parameters.get("original_max_position_embeddings") or stated)
        scaled = round(original * _factor(parameters))
        if kind == "yarn" and _factor(parameters) > 1 and original <= stated:
            usual = longest = scaled
        elif kind == "linear" and is_for_all_layers:
            usual = longest = max(usual, scaled)
        elif kind == "llama3" and stated == original:
            usual = longest = scaled
        elif kind == "longrope":
            longest = scaled if stated == original else longest
            usual = min(usual, original)
        elif kind == "dynamic":  # its angles are counted from the configuration's context, whatever the original one
            longest = max(longest, round(stated * _factor(parameters)))
            usual = min(usual, original)
    return RopeContext(usual, max(usual, longest))


def model_context(text_config: Any, windows: set[int | None], *, is_fixed: bool = False) -> int:
    """Return the context that the model was made for, or less where beyond that it would compute something else.

    Rotary scaling that depends on the longest sequence of the batch would make one request's output depend on
    another's length: such models are served up to where it sets in, unless their angles are fixed. So are models whose
    sliding window is only in the mask that they ask transformers for: `windows` are those that their layers attend
    with.
    """
    reach = rope_context(text_config)
    context = reach.longest if is_fixed else reach.usual
    window = getattr(text_config, "sliding_window", None)
    layer_types = getattr(text_config, "layer_types", None) or ["sliding_attention"]
    if window is not None and window not in windows and "sliding_attention" in layer_types:
        context = min(context, window)
    if has_known_chunks(text_config):
        context = min(context, text_config.attention_chunk_size)
    if (most := most_indexed_keys(text_config)) is not None:
        context = min(context, most)
    if getattr(text_config, "attn_temperature_tuning", False):
        context = min(context, text_config.floor_scale - 1)
    return int(context)


def has_open_context(text_config: Any, windows: set[int | None]) -> bool:
    """Return whether nothing ends a model's context: no layer attends, and the configuration states none (Mamba)."""
    return not windows and getattr(text_config, "max_position_embeddings", None) is None


def has_known_chunks(text_config: Any) -> bool:
    """Return whether there are layers that attend within chunks of so many tokens, the first of which is all there is.

    A model is served up to that: within the first chunk such a layer attends as any other does.
    """
    has_chunks = "chunked_attention" in (getattr(text_config, "layer_types", None) or [])
    return has_chunks and isinstance(getattr(text_config, "attention_chunk_size", None), int)


def drop_scaling_by_step(causal_lm: nn.Module) -> None:
    """Turn off what scales a query by its place in the step, which is not its position (Llama 4).

    The factor is 1 within the context that `model_context` gives such a model.
    """
    module: Any
    for module in causal_lm.modules():
        if getattr(module, "attn_temperature_tuning", False):
            module.attn_temperature_tuning = False


def fix_rope(causal_lm: nn.Module, text_config: Any, wanted_len: int | None) -> None:
    """Give rotary embeddings the angles of a sequence of `wanted_len` tokens, where that is beyond where they vary.

    transformers computes long sequences with those angles too, and short ones with others; here one request's length
    must not change another's answer, so that all have the same (vLLM does so).
    """
    reach = rope_context(text_config)
    if wanted_len is None or wanted_len <= reach.usual or reach.longest == reach.usual:
        return
    length = min(wanted_len, reach.longest)
    fixed = [_fix_module(module, length) for module in causal_lm.modules() if _varies(module)]
    if fixed:
        logger.warning(
            "rotary positions are those of a context of %d tokens for all requests (max_model_len); up to %d tokens"
            " the model would be served with its usual ones",
            length,
            reach.usual,
        )


def has_fixed_rope(causal_lm: nn.Module) -> bool:
    """Return whether `fix_rope` has fixed anything."""
    return any(_FIXED_ROPE in _kinds(module).values() for module in causal_lm.modules())


def varying_rope(causal_lm: nn.Module) -> list[str]:
    """Return the kinds of rotary embedding whose angles depend on the longest sequence of a step."""
    return [kind for module in causal_lm.modules() for kind in _kinds(module).values() if _is_batch_dependent(kind)]


def _scalings(text_config: Any) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield each set of rotary parameters, and whether all layers have it: it may be one for each type of layer."""
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None)
    if not isinstance(rope, dict):
        return
    if _kind(rope):
        yield rope, True
    for parameters in rope.values():
        if isinstance(parameters, dict) and _kind(parameters):
            yield parameters, False


def _kind(parameters: dict[str, Any]) -> str | None:
    kind = parameters.get("rope_type") or parameters.get("type")
    return _OLD_NAMES.get(str(kind), str(kind)) if kind else None


def _factor(parameters: dict[str, Any]) -> float:
    """Return by how much a context is extended; 1 for what is no such number, over which transformers warns."""
    factor = parameters.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        return 1.0
    return float(factor) if math.isfinite(factor) and factor > 1 else 1.0


def _kinds(module: nn.Module) -> dict[str | None, str]:
    """Return the kinds of a module's rotary embeddings, by type of layer where it has several."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        return {layer: str(kind) for layer, kind in kinds.items()}
    return {} if kinds is None else {None: str(kinds)}


def _is_batch_dependent(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind


def _varies(module: nn.Module) -> bool:
    return any(_is_batch_dependent(kind) for kind in _kinds(module).values())


def _fix_module(module: Any, length: int) -> Any:
    """Compute the angles for this length, and keep transformers from computing them anew in each step."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kinds = _kinds(module)
    for layer_type, kind in kinds.items():
        if not _is_batch_dependent(kind):
            continue
        prefix = "" if layer_type is None else f"{layer_type}_"
        angles = getattr(module, f"{prefix}inv_freq")
        compute: Any = ROPE_INIT_FUNCTIONS[kind]
        inv_freq, scaling = compute(module.config, angles.device, seq_len=length, layer_type=layer_type)
        module.register_buffer(f"{prefix}inv_freq", inv_freq.to(angles.dtype), persistent=False)
        setattr(module, f"{prefix}attention_scaling", scaling)
        kinds[layer_type] = _FIXED_ROPE
    module.rope_type = kinds.get(None, kinds)
    return module
