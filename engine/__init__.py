"""The inference engine: requests, scheduling, KV blocks, the step loop, the model, sampling and text output.

It knows nothing of HTTP. The names below are loaded on first use, so that importing the scheduler or the
messages costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.llm import LLM
    from engine.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]

_HOMES = {"LLM": "engine.llm", "SamplingParams": "engine.sampling_params"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
