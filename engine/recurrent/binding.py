"""Serves the recurrent layers of transformers' models from states in slots, without a list of models.

transformers writes such layers alike: their `forward` calls functions of its own module by name, one for the convolution and
one for the scan, and hands them the whole sequence where there is no cache. These functions are substituted: in a step
they go on from the states of the step's sequences. Outside of a served model's layer they are what they were.
"""

import inspect
import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from orcinus.engine.attention.step_context import current_step
from orcinus.engine.recurrent import torch_scans
from orcinus.engine.recurrent.layer_states import LayerStates
from orcinus.engine.recurrent.segments import Segments

_CURRENT: ContextVar[LayerStates | None] = ContextVar("current_layer_states", default=None)
_ATTRIBUTE = "recurrent_states"


def has_recurrence(model_class: Any) -> bool:
    """Return whether the class's module has functions by which layers with states can be served."""
    return bool(_FUNCTIONS.keys() & vars(inspect.getmodule(model_class)).keys())


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
    return _FUNCTIONS.keys() & {*_own_forward(layer).__code__.co_names}


def _own_forward(layer: nn.Module) -> FunctionType:
    function: Any = inspect.unwrap(type(layer).forward)
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
            names[name] = _served(_FUNCTIONS[name], names[name])


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


def _segments() -> Segments | None:
    step = current_step()
    return None if step.state_slots is None else Segments.of(step)


def _convolve(
    states: LayerStates,
    original: Callable[..., Any],
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **given: Any,
) -> Tensor:
    """hidden_states (1, channels, num_tokens), weight (channels, taps)."""
    segments = _segments()
    if segments is None:
        states.note((weight.shape[1] - 1, weight.shape[0]), hidden_states.dtype)
        whole: Tensor = original(hidden_states, weight, bias, activation=activation, **given)
        return whole
    x = hidden_states[0].t()
    return torch_scans.convolve(x, weight, bias, activation, states.take_next(), segments).t().unsqueeze(0)


def _delta_rule(
    states: LayerStates,
    original: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    use_qk_l2norm_in_kernel: bool = False,
    **given: Any,
) -> tuple[Tensor, None]:
    """Tensors (1, num_tokens, heads, ...), as `torch_scans.delta_step` has them for one token."""
    segments = _segments()
    if segments is None:
        states.note((value.shape[2], key.shape[3], value.shape[3]), torch.float32)
        given["use_qk_l2norm_in_kernel"] = use_qk_l2norm_in_kernel
        return original(query, key, value, g=g, beta=beta, **given)[0], None

    def advance(before: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        parts = [x[0, place] for x in (query, key, value, g, beta)]
        return torch_scans.delta_step(*parts, before, normalized=use_qk_l2norm_in_kernel)

    def go_on(before: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        q, k, v, decay, weight = (x[:, place] for x in (query, key, value, g, beta))
        out, end = original(
            q,
            k,
            v,
            g=decay,
            beta=weight,
            initial_state=before,
            output_final_state=True,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        )
        return out, end

    return torch_scans.scan(states.take_next(), segments, advance, go_on).unsqueeze(0), None


def _mamba2(
    states: LayerStates,
    original: Callable[..., Any],
    x: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803 (the names are transformers')
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    *,
    D: Tensor | None = None,  # noqa: N803
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    **given: Any,
) -> Tensor:
    """x (1, num_tokens, heads, head_dim), dt (1, num_tokens, heads), A and D (heads,), B and C (1, num_tokens, groups, state_dim)."""
    segments = _segments()
    shared = {"D": D, "dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": dt_limit, **given}
    if segments is None:
        states.note((x.shape[2], x.shape[3], B.shape[3]), torch.float32)
        whole: Tensor = original(x, dt, A, B, C, **shared)
        return whole
    shared |= {"return_final_states": True}
    step_sizes = (dt if dt_bias is None else dt + dt_bias.to(dt.dtype))[0]
    step_sizes = (F.softplus(step_sizes) if dt_softplus else step_sizes).clamp(*dt_limit)

    def advance(before: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        return torch_scans.mamba2_step(x[0, place], step_sizes[place], A, B[0, place], C[0, place], D, before)

    def go_on(before: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        out, end = original(
            x[:, place], dt[:, place], A, B[:, place], C[:, place], **shared | {"initial_states": before}
        )
        return out, end

    return torch_scans.scan(states.take_next(), segments, advance, go_on).unsqueeze(0)


def _selective(
    states: LayerStates,
    original: Callable[..., Any],
    x: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    *,
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **given: Any,
) -> Tensor:
    """x, dt and z (1, channels, num_tokens), A (channels, state_dim), B and C (1, state_dim, num_tokens), D (channels,)."""
    segments = _segments()
    if segments is None:
        states.note((x.shape[1], A.shape[1]), torch.float32)
        whole: Tensor = original(
            x, dt, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus, **given
        )
        return whole
    step_sizes = (dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[..., None])[0].t()
    step_sizes = F.softplus(step_sizes) if delta_softplus else step_sizes
    tokens, b, c = x[0].t(), B[0].t(), C[0].t()

    def advance(before: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        return torch_scans.selective_step(tokens[place], step_sizes[place], A, b[place], c[place], D, before)

    def go_on(state: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        outputs = []
        for token in range(place.start, place.stop):
            out, state = advance(state, slice(token, token + 1))
            outputs.append(out)
        return torch.cat(outputs).unsqueeze(0), state

    out = torch_scans.scan(states.take_next(), segments, advance, go_on)
    if z is not None:
        out = out * F.silu(z[0].t())
    return out.t().unsqueeze(0)


# By the names under which transformers' layers call them.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolve,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _mamba2,
    "mamba_selective_scan": _selective,
}
