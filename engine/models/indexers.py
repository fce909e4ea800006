"""Sparse attention whose indexer picks the keys of each query, served within as many tokens as an indexer picks.

Up to there all keys are picked, and attention is what it is without an indexer, which is taken out. There is no list of
models: such layers are told by their type, and an indexer by its name and where it stands.
"""

from typing import Any

import torch
from torch import Tensor, nn

_LAYER_TYPES = {"indexed_attention", "minimax_m3_sparse"}


def indexed_layer_types(text_config: Any) -> set[str]:
    """Return the types of layers that pick keys, where the configuration says how many."""
    layer_types = set(getattr(text_config, "layer_types", None) or [])
    return layer_types & _LAYER_TYPES if _num_picked(text_config) is not None else set()


def most_indexed_keys(text_config: Any) -> int | None:
    """Return how many tokens there may be so that an indexer picks all of them; None for a model without one."""
    return _num_picked(text_config) if indexed_layer_types(text_config) else None


def _num_picked(text_config: Any) -> int | None:
    keys = getattr(text_config, "index_topk", None)
    if isinstance(keys, int):
        return keys
    blocks, block_size = (getattr(text_config, f"index_{name}", None) for name in ("topk_blocks", "block_size"))
    return blocks * block_size if isinstance(blocks, int) and isinstance(block_size, int) else None


def pick_every_key(causal_lm: nn.Module) -> None:
    """Take the indexers out of a model whose context is within `most_indexed_keys`, and their weights with them."""
    for attention in list(causal_lm.modules()):
        if isinstance(getattr(attention, "indexer", None), nn.Module):
            attention.indexer = _EveryKey()
            attention.register_forward_pre_hook(_with_a_mask, with_kwargs=True)


class _EveryKey(nn.Module):
    """Stands in for an indexer. It picks nothing, and nothing is left out for that: `attention_function` sees to it."""

    def forward(self, hidden_states: Tensor, *_positional: object, **_named: object) -> Tensor:
        return torch.empty(0, dtype=torch.int32, device=hidden_states.device)


def _with_a_mask(
    _attention: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the layer's code a mask without elements where it has none, because it hands a part of it to its indexer."""
    if given.get("attention_mask", 0) is None:
        given = given | {"attention_mask": torch.empty(1, 1, 0, 0, dtype=torch.bool)}
    return inputs, given
