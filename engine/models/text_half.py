"""The language model inside a multimodal checkpoint: its configuration, its class, and its weights' names there.

There is no list of models: the class is that of the configuration's language model in transformers' own mapping, or
else the checkpoint's class without its towers; names are found by comparing the checkpoint's with the model's.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from orcinus.engine.attention.serving import ATTENTION_NAME
from orcinus.engine.models.language_model import decoder_of
from orcinus.engine.platform.lean_imports import on_meta_device

Shapes = Mapping[str, tuple[int, ...]]
_OF_WHOLE = "multimodal_architecture"  # where a text configuration notes the class that it is a part of


def text_half_of(causal_lm: Any) -> str | None:
    """Return the multimodal architecture that this language model was taken out of; None if it stands alone."""
    return getattr(causal_lm.config.get_text_config(decoder=True), _OF_WHOLE, None)


def causal_class(text_config: Any) -> Any | None:
    """Return transformers' causal class for the language model of a multimodal configuration, if it has one."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return getattr(transformers, str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text_config.model_type)), None)


def settle_text_config(whole_config: Any, architecture: str, model_class: Any | None) -> Any:
    """Return the text configuration as its class wants it.

    The head may be tied where either configuration says so: one that the checkpoint has beside the embedding, and that
    differs, is not."""
    text_config = whole_config.get_text_config(decoder=True)
    setattr(text_config, _OF_WHOLE, architecture)
    if model_class is not None:
        text_config.architectures = [model_class.__name__]
        text_config.tie_word_embeddings = bool(
            getattr(whole_config, "tie_word_embeddings", False) or getattr(text_config, "tie_word_embeddings", False)
        )
    return text_config


def new_text_half(model_class: Any, config: Any, dtype: torch.dtype) -> Any:
    """Return a model on the CPU that is yet to be filled: of a causal class, or of a multimodal one without its towers.

    What is left out is only ever described, on torch's meta device.
    """
    from transformers.initialization import no_init_weights

    options = {"dtype": dtype, "attn_implementation": ATTENTION_NAME}
    text_config = config.get_text_config(decoder=True)
    with no_init_weights():
        if text_config is config:
            return model_class._from_config(config, **options)
        with on_meta_device():
            whole = model_class._from_config(config, **options)
        described: Any = decoder_of(whole)
        decoder = type(described)._from_config(described.config, **options)
    for parent in list(whole.modules()):
        for name, child in list(parent.named_children()):
            if child is described:
                setattr(parent, name, decoder)
    if (head := whole.get_output_embeddings()) is not None:
        head.to_empty(device="cpu")
    drop_towers(whole)
    return whole


def drop_towers(whole: Any) -> None:
    """Take every module out of a multimodal model that its language model and head are no part of."""
    parts = (decoder_of(whole), whole.get_output_embeddings())
    _drop(whole, {module for part in parts if part is not None for module in part.modules()})


def _drop(parent: nn.Module, kept: set[nn.Module]) -> None:
    for name in list(parent._parameters) + list(parent._buffers):
        setattr(parent, name, None)
    for name, child in list(parent.named_children()):
        if child in kept:
            continue
        if kept.isdisjoint(child.modules()):
            setattr(parent, name, None)
        else:
            _drop(child, kept)


def key_mapping(names: Mapping[str, str]) -> dict[str, str]:
    """Return patterns that make the model's names of `names_in_checkpoint`'s, for transformers."""
    mapping: dict[str, str] = {}
    for name, stored in names.items():
        parts, stored_parts = name.split("."), stored.split(".")
        same = 0
        while same < min(len(parts), len(stored_parts)) and parts[-1 - same] == stored_parts[-1 - same]:
            same += 1
        of_model, of_file = ("".join(f"{part}." for part in each[: len(each) - same]) for each in (parts, stored_parts))
        if of_model != of_file:
            mapping[f"^{re.escape(of_file)}(?={re.escape(parts[-same])})"] = of_model
    return mapping


def decoder_prefix(causal_lm: Any) -> str:
    """Return what the names of the decoder's weights begin with."""
    decoder = decoder_of(causal_lm)
    return next(f"{name}." if name else "" for name, module in causal_lm.named_modules() if module is decoder)


def names_in_checkpoint(expected: Shapes, stored: Shapes, base_prefix: str) -> dict[str, str]:
    """Return the checkpoint's name for each weight of the model that it has under some name.

    The model's names without `base_prefix` are looked for behind each prefix of the checkpoint's, and the prefix that
    fits most of them, with their shapes, is the language model's. A weight beside that (a head) is taken from the
    nearest place around it. Nothing is returned where two prefixes fit equally well.
    """
    inner = {name.removeprefix(base_prefix): name for name in expected if name.startswith(base_prefix)}
    prefix = _best_prefix({short: expected[name] for short, name in inner.items()}, stored)
    if prefix is None:
        return {}
    found = {name: prefix + short for short, name in inner.items() if prefix + short in stored}
    return found | _names_beside(expected, stored, base_prefix, prefix)


def renaming(expected: Shapes, stored: Shapes, base_prefix: str) -> Callable[[str], str | None] | None:
    """Return what makes the model's name of a checkpoint's, and None of one that the language model is no part of.

    As `names_in_checkpoint`, for weights that become the model's only by more than that. None where there is no prefix.
    """
    inner = {name.removeprefix(base_prefix): shape for name, shape in expected.items() if name.startswith(base_prefix)}
    prefix = _best_prefix(inner, stored)
    if prefix is None:
        return None
    beside = {where: name for name, where in _names_beside(expected, stored, base_prefix, prefix).items()}

    def renamed(name: str) -> str | None:
        return beside.get(name) or (base_prefix + name.removeprefix(prefix) if name.startswith(prefix) else None)

    return renamed


def _names_beside(expected: Shapes, stored: Shapes, base_prefix: str, prefix: str) -> dict[str, str]:
    """Return the checkpoint's name for each weight beside the decoder's that it has."""
    found = {}
    for name in (name for name in expected if not name.startswith(base_prefix)):
        places = [place + name for place in _around(prefix) if stored.get(place + name) == expected[name]]
        if places:
            found[name] = places[0]
    return found


def _best_prefix(inner: Shapes, stored: Shapes) -> str | None:
    fitting: dict[str, int] = {}
    for name, shape in stored.items():
        for start in _starts(name):
            if inner.get(name[start:]) == shape:
                fitting[name[:start]] = fitting.get(name[:start], 0) + 1
    most = max(fitting.values(), default=0)
    best = [prefix for prefix, count in fitting.items() if count == most]
    return best[0] if len(best) == 1 else None


def _starts(name: str) -> list[int]:
    return [0, *(i + 1 for i, character in enumerate(name) if character == ".")]


def _around(prefix: str) -> list[str]:
    """Return a prefix and those that it begins with, the longest first: `a.b.`, `a.`, and the empty one."""
    return [prefix[:start] for start in reversed(_starts(prefix))]
