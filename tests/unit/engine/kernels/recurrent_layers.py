"""Recurrent layers on random tensors: how the native kernels are called, what the definition says, and how near it is.

A definition is the recurrent rule in float64. Each layer has inputs of one sequence, of which tests take what they
need. Inputs and results have their tokens first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from orcinus.engine.recurrent.native_scans import NativeScans

EPS = 2.0**-24  # the largest relative error of a rounding to float32
HALF = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}  # twice that of a rounding to the layer's own type

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Segments:
    """A step's sequences; the protocol of `native_scans`."""

    starts: Tensor
    slots: Tensor
    is_new: Tensor

    @staticmethod
    def of(lengths: Sequence[int], slots: Sequence[int], is_new: Sequence[bool]) -> "Segments":
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        return Segments(starts, torch.tensor(slots), torch.tensor(is_new))


@dataclass
class Exact:
    """What a sequence should come to, and by how much any element may differ for rounding."""

    out: Tensor
    state: Tensor
    out_error: Tensor
    state_error: Tensor | float


@dataclass
class Layer:
    """One layer with the inputs of a sequence (num_tokens, ...) and the shape of a slot's state."""

    dtype: torch.dtype
    inputs: Inputs
    state_shape: tuple[int, ...]
    state_dtype: torch.dtype
    call: Callable[[NativeScans, Inputs, Tensor, Segments], Tensor]
    exact: Callable[[Inputs, Tensor], Exact]
    shared: Inputs = field(default_factory=dict)

    def run(self, scans: NativeScans, inputs: Inputs, states: Tensor, segments: Segments) -> Tensor:
        """Outputs (num_tokens, ...) of a step whose inputs are these."""
        return self.call(scans, inputs, states, segments)

    def cut(self, first: int, end: int) -> Inputs:
        return {name: tensor[first:end] for name, tensor in self.inputs.items()}

    def states(self, num_slots: int, fill: float = torch.nan) -> Tensor:
        """Memory of slots that are apart, filled with a number."""
        rows = torch.full((num_slots, 16 + torch.Size(self.state_shape).numel()), fill, dtype=self.state_dtype)
        return rows[:, 16:].view(num_slots, *self.state_shape)


def joined(parts: Sequence[Inputs]) -> Inputs:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def side_by_side(*tensors: Tensor) -> list[Tensor]:
    """Views into one row for each token, as the parts of a projection are."""
    row = torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
    parts = torch.split(row, [tensor[0].numel() for tensor in tensors], dim=1)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class Random:
    """Normal numbers of one seed."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def floats(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self._generator)

    def __call__(self, *size: int) -> Tensor:
        return self.floats(*size).to(self._dtype)


def convolution(
    dtype: torch.dtype, *, length: int, channels: int, taps: int, has_bias: bool, activation: str | None, seed: int = 0
) -> Layer:
    normal = Random(dtype, seed)
    weight, bias = normal(channels, taps), normal(channels) if has_bias else None

    def call(scans: NativeScans, inputs: Inputs, states: Tensor, segments: Segments) -> Tensor:
        x, _ = side_by_side(inputs["x"], inputs["x"])
        return scans.convolve(x.t().unsqueeze(0), weight, bias, activation, states=states, segments=segments)[0].t()

    def exact(inputs: Inputs, state: Tensor) -> Exact:
        """A sum of taps + 1 terms, rounded; SiLU, which makes errors at most 1.1 times as large, and rounded again."""
        rows = torch.cat([state, inputs["x"]]).double()
        terms = rows.unfold(0, taps, 1) * weight.double()
        offset = torch.zeros(channels).double() if bias is None else bias.double()
        out = terms.sum(-1) + offset
        error = (taps + 2) * EPS * (terms.abs().sum(-1) + offset.abs()) + HALF[dtype] * out.abs()
        if activation is not None:
            out = F.silu(out)
            error = 1.1 * error + 8 * EPS * out.abs() + HALF[dtype] * out.abs()
        return Exact(out, rows[len(rows) - taps + 1 :], error, 0.0)

    return Layer(dtype, {"x": normal(length, channels)}, (taps - 1, channels), dtype, call, exact, {"weight": weight})


def delta_rule(
    dtype: torch.dtype,
    *,
    length: int,
    key_heads: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    by_channel: bool = False,
    normalized: bool = True,
    has_float_beta: bool = False,
    seed: int = 0,
) -> Layer:
    normal = Random(dtype, seed)
    scale = 1.0 if normalized else key_dim**-0.5  # keys that are longer than 1 make the rule unstable
    gates = (length, heads, key_dim) if by_channel else (length, heads)
    beta = normal.floats(length, heads).sigmoid()
    inputs = {
        "query": normal(length, key_heads, key_dim),
        "key": (scale * normal(length, key_heads, key_dim)).to(dtype),
        "value": normal(length, heads, value_dim),
        "decay": -F.softplus(normal.floats(*gates) - 2),
        "beta": beta if has_float_beta else beta.to(dtype),
    }

    def call(scans: NativeScans, inputs: Inputs, states: Tensor, segments: Segments) -> Tensor:
        projected = side_by_side(inputs["query"], inputs["key"], inputs["value"])
        gates = {name: inputs[name].unsqueeze(0) for name in ("decay", "beta")}
        tensors = [tensor.unsqueeze(0) for tensor in projected]
        return scans.delta_rule(*tensors, **gates, normalized=normalized, states=states, segments=segments)[0]

    def exact(inputs: Inputs, state: Tensor) -> Exact:
        """A column of the state is a vector, which no token but by its own value makes longer.

        So errors add up: in each token those of the normalized key, of its product with the state, which are sums of a
        quarter of the channels, of the decay and of two roundings.
        """
        query, key = (inputs[name].double().repeat_interleave(heads // key_heads, dim=1) for name in ("query", "key"))
        if normalized:
            query, key = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key))
        query = query * key_dim**-0.5
        decay = inputs["decay"].double().exp()
        factors = decay.unsqueeze(-1) if by_channel else decay[..., None, None]
        state, longest, outputs = state.double(), state.double().norm(dim=1).amax(), []
        for token in range(len(query)):
            state = state * factors[token]
            known = torch.einsum("hkv,hk->hv", state, key[token])
            learnt = (inputs["value"][token].double() - known) * inputs["beta"][token].double()[:, None]
            state = state + key[token][..., None] * learnt[:, None]
            longest = max(longest, state.norm(dim=1).amax(), inputs["value"][token].double().abs().amax())
            outputs.append(torch.einsum("hkv,hk->hv", state, query[token]))
        out = torch.stack(outputs)
        per_sum = key_dim / 4 + key_dim / 16 + 16
        key_length = max(1.0, float(key.norm(dim=-1).amax()))
        state_error = len(query) * (per_sum + 16) * EPS * longest * key_length**2
        out_error = query.norm(dim=-1).amax() * (state_error + per_sum * EPS * longest)
        return Exact(out, state, out_error + HALF[dtype] * out.abs(), state_error)

    return Layer(dtype, inputs, (heads, key_dim, value_dim), torch.float32, call, exact)


def mamba2(
    dtype: torch.dtype,
    *,
    length: int,
    heads: int,
    head_dim: int,
    groups: int,
    state_dim: int,
    has_d: bool = True,
    dt_limit: tuple[float, float] = (0.0, torch.inf),
    seed: int = 0,
) -> Layer:
    normal = Random(dtype, seed)
    a, dt_bias = -normal.floats(heads).exp(), normal(heads)
    d = normal(heads) if has_d else None
    inputs = {
        "x": normal(length, heads, head_dim),
        "dt": normal(length, heads),
        "b": normal(length, groups, state_dim),
        "c": normal(length, groups, state_dim),
    }

    def call(scans: NativeScans, inputs: Inputs, states: Tensor, segments: Segments) -> Tensor:
        tensors = side_by_side(*(inputs[name] for name in ("x", "dt", "b", "c")))
        x, dt, b, c = (tensor.unsqueeze(0) for tensor in tensors)
        return scans.mamba2(
            x,
            dt,
            a=a,
            b=b,
            c=c,
            d=d,
            dt_bias=dt_bias,
            has_softplus=True,
            dt_limit=dt_limit,
            states=states,
            segments=segments,
        )[0]

    def exact(inputs: Inputs, state: Tensor) -> Exact:
        dt = F.softplus(inputs["dt"] + dt_bias).clamp(*dt_limit).double()
        x = inputs["x"].double()
        b, c = (inputs[name].double().repeat_interleave(heads // groups, dim=1) for name in ("b", "c"))
        added = torch.einsum("th,thp,thn->thpn", dt, x, b)
        decay = (a.double() * dt).exp()[..., None, None]
        skipped = torch.zeros_like(x) if d is None else x * d.double()[:, None]
        return _scanned(state, decay, added, c[:, :, None], skipped)

    return Layer(dtype, inputs, (heads, head_dim, state_dim), torch.float32, call, exact)


def selective(
    dtype: torch.dtype,
    *,
    length: int,
    channels: int,
    state_dim: int,
    has_z: bool = True,
    by_channel: bool = False,
    seed: int = 0,
) -> Layer:
    normal = Random(dtype, seed)
    a, dt_bias, d = -normal.floats(channels, state_dim).exp(), normal(channels), normal(channels)
    inputs = {
        "x": normal(length, channels),
        "dt": normal(length, channels),
        "b": normal(length, state_dim),
        "c": normal(length, state_dim),
        "z": normal(length, channels),
    }

    def call(scans: NativeScans, inputs: Inputs, states: Tensor, segments: Segments) -> Tensor:
        tensors = side_by_side(*(inputs[name] for name in ("x", "dt", "b", "c", "z")))
        x, dt, b, c, z = (tensor.t().unsqueeze(0) for tensor in tensors)
        dt = dt.contiguous() if by_channel else dt
        return scans.selective_scan(
            x,
            dt,
            a=a,
            b=b,
            c=c,
            d=d,
            z=z if has_z else None,
            dt_bias=dt_bias,
            has_softplus=True,
            states=states,
            segments=segments,
        )[0].t()

    def exact(inputs: Inputs, state: Tensor) -> Exact:
        dt = F.softplus(inputs["dt"] + dt_bias).double()
        x, b, c = (inputs[name].double() for name in ("x", "b", "c"))
        added = (dt * x)[..., None] * b[:, None]
        exact = _scanned(state, (dt[..., None] * a.double()).exp(), added, c[:, None], x * d.double())
        if has_z:
            gate = F.silu(inputs["z"].double())
            exact.out_error = exact.out_error * gate.abs() + (HALF[dtype] + 8 * EPS) * (exact.out * gate).abs()
            exact.out = exact.out * gate
        return exact

    return Layer(dtype, inputs, (channels, state_dim), torch.float32, call, exact)


def _scanned(state: Tensor, decay: Tensor, added: Tensor, c: Tensor, skipped: Tensor) -> Exact:
    """Return what a diagonal state space comes to, over tokens (num_tokens, ..., state_dim).

    A token adds the errors of its decay, in all less than 8 roundings as x * exp(-x) is less than 1, of its own term,
    as much again, and of two more; a decay makes none larger. Then a sixteenth of the states is summed, and 16 lanes.
    """
    state, largest, outputs = state.double(), state.double().abs().amax(), []
    for token in range(len(added)):
        state = state * decay[token] + added[token]
        largest = max(largest, state.abs().amax(), added[token].abs().amax())
        outputs.append((state * c[token]).sum(-1) + skipped[token])
    out = torch.stack(outputs)
    state_error = 18 * EPS * len(added) * largest
    weights = c.abs().sum(-1).amax()
    per_sum = (c.shape[-1] / 16 + 8) * EPS
    return Exact(out, state, weights * (state_error + per_sum * largest) + 4 * EPS * skipped.abs(), state_error)
