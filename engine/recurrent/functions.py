"""The functions that recurrent layers of transformers' models call, served from the states of a step's sequences.

Each has transformers' signature, behind the layer's states and the function that it stands in for. In a run without
slots, which is one whole sequence from its start, that one computes, and what a slot must hold is noted.
"""

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from orcinus.engine.attention.step_context import current_step
from orcinus.engine.kernels.library import load_library
from orcinus.engine.recurrent import torch_scans
from orcinus.engine.recurrent.layer_states import LayerStates
from orcinus.engine.recurrent.native_scans import NativeScans, can_convolve, can_run_delta_rule, can_scan
from orcinus.engine.recurrent.segments import Segments

_THREAD = threading.local()


def _segments() -> Segments | None:
    step = current_step()
    return None if step.state_slots is None else Segments.of(step)


def _native(x: Tensor) -> NativeScans | None:
    """Return this thread's kernels for the device of `x`, if there are some and the step can be computed by them.

    They run sequences in parallel, each in its own slot, and a recorded step may name one several times.
    """
    is_recorded = current_step().metadata[0].is_recorded
    library = load_library() if x.device.type == "cpu" and not is_recorded else None
    if library is None:
        return None
    if not hasattr(_THREAD, "scans"):
        _THREAD.scans = NativeScans(library)
    scans: NativeScans = _THREAD.scans
    return scans


def convolve(  # noqa: PLR0917 (as the next ones: the signature is transformers')
    states: LayerStates,
    original: Callable[..., Any],
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **given: Any,
) -> Tensor:
    """Convolve hidden_states (1, channels, num_tokens) with weight (channels, taps), bias (channels,)."""
    segments = _segments()
    if segments is None:
        states.note((weight.shape[1] - 1, weight.shape[0]), hidden_states.dtype)
        whole: Tensor = original(hidden_states, weight, bias, activation=activation, **given)
        return whole
    place: dict[str, Any] = {"activation": activation, "states": states.take_next(), "segments": segments}
    native = _native(hidden_states)
    if native is not None and can_convolve(hidden_states.dtype, weight, activation):
        return native.convolve(hidden_states, weight, bias, **place)
    return torch_scans.convolve(hidden_states[0].t(), weight, bias, **place).t().unsqueeze(0)


def delta_rule(  # noqa: PLR0917
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
    """Run the gated delta rule over (1, num_tokens, heads, ...), as `torch_scans.delta_step` has them for one token."""
    segments = _segments()
    if segments is None:
        states.note((value.shape[2], key.shape[3], value.shape[3]), torch.float32)
        given["use_qk_l2norm_in_kernel"] = use_qk_l2norm_in_kernel
        return original(query, key, value, g=g, beta=beta, **given)[0], None
    kept, native = states.take_next(), _native(value)
    if native is not None and can_run_delta_rule(value.dtype, key.shape[3]):
        shared: dict[str, Any] = {"states": kept, "segments": segments, "normalized": use_qk_l2norm_in_kernel}
        return native.delta_rule(query, key, value, decay=g, beta=beta, **shared), None

    def advance(before: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        q, k, v, decay, weight = (x[0, place] for x in (query, key, value, g, beta))
        return torch_scans.delta_step(
            q, k, v, decay=decay, beta=weight, state=before, normalized=use_qk_l2norm_in_kernel
        )

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

    return torch_scans.scan(kept, segments, advance, go_on).unsqueeze(0), None


def mamba2_scan(  # noqa: PLR0917
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
    """Scan x (1, num_tokens, heads, head_dim) with dt (1, num_tokens, heads), A and D (heads,).

    B and C are (1, num_tokens, groups, state_dim).
    """
    segments = _segments()
    shared = {"D": D, "dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": dt_limit, **given}
    if segments is None:
        states.note((x.shape[2], x.shape[3], B.shape[3]), torch.float32)
        whole: Tensor = original(x, dt, A, B, C, **shared)
        return whole
    kept, native = states.take_next(), _native(x)
    if native is not None and can_scan(x.dtype, B.shape[3]):
        place_of: dict[str, Any] = {"states": kept, "segments": segments, "dt_limit": dt_limit}
        return native.mamba2(x, dt, a=A, b=B, c=C, d=D, dt_bias=dt_bias, has_softplus=dt_softplus, **place_of)
    shared |= {"return_final_states": True}
    step_sizes = (dt if dt_bias is None else dt + dt_bias.to(dt.dtype))[0]
    step_sizes = (F.softplus(step_sizes) if dt_softplus else step_sizes).clamp(*dt_limit)

    def advance(before: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        b, c = B[0, place], C[0, place]
        return torch_scans.mamba2_step(x[0, place], step_sizes[place], a=A, b=b, c=c, d=D, state=before)

    def go_on(before: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        out, end = original(
            x[:, place], dt[:, place], A, B[:, place], C[:, place], **shared | {"initial_states": before}
        )
        return out, end

    return torch_scans.scan(kept, segments, advance, go_on).unsqueeze(0)


def selective_scan(  # noqa: PLR0917
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
    """Scan x (1, channels, num_tokens) with dt and z like it, A (channels, state_dim), D (channels,).

    B and C are (1, state_dim, num_tokens).
    """
    segments = _segments()
    if segments is None:
        states.note((x.shape[1], A.shape[1]), torch.float32)
        whole: Tensor = original(
            x, dt, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus, **given
        )
        return whole
    kept, native = states.take_next(), _native(x)
    if native is not None and can_scan(x.dtype, A.shape[1]):
        shared: dict[str, Any] = {"states": kept, "segments": segments, "has_softplus": delta_softplus}
        return native.selective_scan(x, dt, a=A, b=B, c=C, d=D, z=z, dt_bias=delta_bias, **shared)
    step_sizes = (dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[..., None])[0].t()
    step_sizes = F.softplus(step_sizes) if delta_softplus else step_sizes
    tokens, inputs, outputs = x[0].t(), B[0].t(), C[0].t()

    def advance(before: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        b, c = inputs[place], outputs[place]
        return torch_scans.selective_step(tokens[place], step_sizes[place], a=A, b=b, c=c, d=D, state=before)

    out = torch_scans.scan(kept, segments, advance)
    if z is not None:
        out = out * F.silu(z[0].t())
    return out.t().unsqueeze(0)


# By the names under which the layers call them.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": convolve,
    "torch_chunk_gated_delta_rule": delta_rule,
    "chunk_kimi_delta_attention": delta_rule,
    "mamba2_chunk_scan": mamba2_scan,
    "mamba_selective_scan": selective_scan,
}
