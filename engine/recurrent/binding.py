"""Serves the recurrent layers of transformers' models from states in slots, without a list of models.

transformers writes such layers alike: their `forward` calls functions of its own module by name, one for the
convolution and one for the scan, and hands them the whole sequence where there is no cache. These functions are
substituted: in a step they go on from the states of the step's sequences. Outside of a served model's layer they are
what they were.
"""

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from orcinus.engine.recurrent.functions import FUNCTIONS
from orcinus.engine.recurrent.layer_states import LayerStates

_CURRENT: ContextVar[LayerStates | None] = ContextVar("current_layer_states", default=None)
_ATTRIBUTE = "recurrent_states"


def has_recurrence(model_class: Any) -> bool:
    """Return whether the class's module has functions by which layers with states can be served."""
    return bool(FUNCTIONS.keys() & vars(inspect.getmodule(model_class)).keys())


def bind_recurrent_layers(model: nn.Module) -> int:
    """Let every layer that calls the functions keep its states in slots. Returns how many do."""
    layers = [(layer, names) for layer in model.modules() if (names := _functions_of(layer))]
    for layer, names in layers:
        _substitute(_own_forward(layer).__globals__, names)
        states = LayerStates()
        layer.add_module(_ATTRIBUTE, states)
        layer.forward = partial(_forward, states, layer.forward)
    return len(layers)


def states_of(layer: nn.Module) -> LayerStates | None:
    """Return the states of a layer that was bound."""
    states = getattr(layer, _ATTRIBUTE, None)
    return states if isinstance(states, LayerStates) else None


def _functions_of(layer: nn.Module) -> set[str]:
    return FUNCTIONS.keys() & {*_own_forward(layer).__code__.co_names}


def _own_forward(layer: nn.Module) -> FunctionType:
    function = inspect.unwrap(type(layer).forward)
    assert isinstance(function, FunctionType)
    return function


def _forward(states: LayerStates, forward: Callable[..., Any], *args: Any, **given: Any) -> Any:
    token = _CURRENT.set(states)
    states.begin()
    try:
        return forward(*args, **given)
    finally:
        _CURRENT.reset(token)


def _substitute(names: dict[str, Any], wanted: set[str]) -> None:
    for name in wanted:
        if not hasattr(names[name], "_serves_slots"):
            names[name] = _served(FUNCTIONS[name], names[name])


def _served(serve: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that a layer in a step is served by, and that is the original for all others."""
    by_torch = inspect.unwrap(original)  # without the search for packages, which are for GPUs, and its warnings

    @wraps(original)
    def function(x: Tensor, *args: Any, **given: Any) -> Any:
        states = _CURRENT.get()
        if states is None:
            return original(x, *args, **given)
        own = original if x.is_cuda else by_torch
        return serve(states, own, x, *args, **given)

    function._serves_slots = True  # type: ignore[attr-defined]
    return function
