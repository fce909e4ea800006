"""Orcinus: an OpenAI-compatible inference server with continuous batching, and the engine behind it.

    from orcinus import LLM, SamplingParams

The folders `config`, `engine` and `server` stand beside this one and are linked into it (decision 24). The names below
are loaded on first use, so that `import orcinus` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orcinus.engine.frontend.llm import LLM
    from orcinus.engine.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]

_HOMES = {"LLM": "orcinus.engine.frontend.llm", "SamplingParams": "orcinus.engine.sampling_params"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'orcinus' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
