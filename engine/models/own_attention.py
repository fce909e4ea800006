"""What a model's class says of its attention, and the logits that the model has with the attention of its own code.

transformers marks the classes whose attention another one may stand in for. Of the others many call it all the same;
whether what stands in is told all there is to know is seen by comparing.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_OWN = "eager"
_INTERFACE = "ALL_ATTENTION_FUNCTIONS"


def is_vouched_for(model_class: Any) -> bool:
    """Return whether the class says that its attention goes through the interface, and takes masks of no other kind.

    Code that comes with a model says nothing either way, and may know no attention but the one that it is given.
    """
    is_remote = not model_class.__module__.startswith("transformers.")
    return is_remote or bool(model_class._supports_attention_backend and model_class._supports_flash_attn)


def has_interface(model_class: Any) -> bool:
    """Return whether the module that the class is written in knows of transformers' attention interface."""
    return hasattr(sys.modules.get(model_class.__module__), _INTERFACE)


@contextmanager
def own_attention(causal_lm: nn.Module) -> Iterator[None]:
    """Let the model attend by its own code, until the context ends."""
    configs = {id(config): config for module in causal_lm.modules() if (config := getattr(module, "config", None))}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = _OWN
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
