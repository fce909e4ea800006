"""Checkpoints of a model without a head (`MistralModel`, `Qwen3Model`), as embedding models often are.

They run as the causal language model of their family, whose head stays tied to the input embedding and means nothing.
"""

from typing import Any


def is_bare(architecture: str | None, model_type: str) -> bool:
    """Return whether the architecture is its family's model without a head, and the family has one with a head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    bare = MODEL_MAPPING_NAMES.get(model_type, ())
    names = (bare,) if isinstance(bare, str) else bare
    return architecture in names and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def bare_architecture(causal_lm: Any) -> str | None:
    """Return what a checkpoint without a head calls its architecture; None for a model with its head."""
    config = causal_lm.config
    architecture = (getattr(config, "architectures", None) or [None])[0]
    if architecture == type(causal_lm).__name__ or not is_bare(architecture, config.model_type):
        return None
    return str(architecture)


def with_prefix(name: str, causal_lm: Any) -> str:
    """Return a weight's name in the causal language model, of which the bare model is a part."""
    prefix = f"{causal_lm.base_model_prefix}."
    return name if name.startswith(prefix) else prefix + name
