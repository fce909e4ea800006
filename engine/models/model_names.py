"""What transformers calls the weights of a checkpoint in a model, and which of them it makes one of."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Place:
    """Names a weight of the model. If that is one for all experts, `part` says which of an expert's it takes in."""

    name: str
    part: int | None = None


class ModelNames:
    """Knows the places of a checkpoint's weights in a model, by transformers' own renamings and conversions."""

    def __init__(self, causal_lm: Any) -> None:
        self._causal_lm = causal_lm
        self._expected = set(causal_lm.state_dict())
        self._unused = [re.compile(pattern) for pattern in causal_lm._keys_to_ignore_on_load_unexpected or ()]

    def place_of(self, name: str) -> Place | None:
        """Return where a weight of this name belongs; None if more is done to it than to put experts together."""
        from transformers.core_model_loading import rename_source_key

        if name in self._expected:
            return Place(name)
        renamings, converters = self._mapping
        ours, pattern = rename_source_key(name, renamings, converters)
        if pattern is None:
            return Place(ours)
        converter = next(entry for entry in converters if pattern in entry.source_patterns)
        return Place(ours, converter.source_patterns.index(pattern)) if _puts_experts_together(converter) else None

    def is_unused(self, name: str) -> bool:
        """Return whether the model has no place for a weight of this name, as of layers that predict further.

        Its class says so, or it is of a layer behind the last one.
        """
        if name in self._expected:
            return False
        num_layers = getattr(self._causal_lm.config.get_text_config(decoder=True), "num_hidden_layers", None)
        layer = _LAYER.search(name)
        is_behind = layer is not None and num_layers is not None and int(layer[1]) >= num_layers
        return is_behind or any(pattern.search(name) for pattern in self._unused)

    @cached_property
    def _mapping(self) -> tuple[list[Any], list[Any]]:
        """Return transformers' renamings and conversions, which take it a while to make."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        entries: Any = get_model_conversion_mapping(self._causal_lm)
        renamings = [entry for entry in entries if isinstance(entry, WeightRenaming)]
        return renamings, [entry for entry in entries if isinstance(entry, WeightConverter)]


def _puts_experts_together(converter: Any) -> bool:
    """Return whether a conversion makes one weight of all experts', with gate and up one behind the other."""
    operations = [(type(operation).__name__, getattr(operation, "dim", None)) for operation in converter.operations]
    merged = ("MergeModulelist", 0)
    return operations == ([merged] if len(converter.source_patterns) == 1 else [merged, ("Concatenate", 1)])
