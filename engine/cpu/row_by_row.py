"""Deterministic mode: a token's numbers are a function of its own sequence, whatever shares the step, to the last bit.

Owns how torch's operations are run so that no row of a tensor has a say in another and none depends on where it lies,
and the check that a loaded model is computed so. How keys are summed is the attention's matter (`token_by_token`), and
packed layers are that of our kernels, which keep rows apart anyway. Knows nothing of requests.

torch itself promises no such thing: how a product sums depends on how many rows it has, and functions such as `exp` are
computed in one way in whole vectors and in another for what is left at the end.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.attention import NATIVE_DTYPES, PagedAttention, attending, batch_metadata
from engine.errors import ModelLoadError
from engine.kernels.library import Library, PlainProduct
from engine.kv_cache import allocate_cache
from engine.model_probe import ServedModel

_CPU = torch.device("cpu")
# Numbers that no vectorized loop has a rest of, however wide its vectors and however often it is unrolled.
_WHOLE_VECTORS = 256
_ALIGNMENT = 64  # bytes


class RowByRow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside it, torch computes each row as if there were no others. CPU only; torch must have one thread.

    Products go to a kernel of ours, or without it row by row. Functions of single numbers are computed in whole
    vectors. Operations that torch makes of others are taken apart, so that no product is hidden in one.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch would have its compiler told, at every operation, to stay away; here it never runs."""
        return False

    def __init__(self, library: Library | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._multiply = Multiply(library)
        self._ways: dict[Any, Callable[..., Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        way = self._ways.get(func)
        if way is None:
            way = self._ways[func] = self._way_of(func)
        return way(*args, **kwargs) if kwargs else way(*args)

    def _way_of(self, func: Any) -> Callable[..., Any]:
        if (product := _PRODUCTS.get(func)) is not None:
            return partial(product, self._multiply)
        return partial(_in_whole_vectors if _is_of_single_numbers(func) else self._taken_apart, func)

    def _taken_apart(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        self._ways[func] = func
        return func(*args, **kwargs)


class Multiply:
    """(count, n) times (n, columns), plus (columns,): how a number is summed depends on n alone."""

    def __init__(self, library: Library | None) -> None:
        self._library = library

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self._library is not None and x.dtype in NATIVE_DTYPES and x.dtype is weight.dtype:
            return _natively(self._library, x, weight, bias)
        # Products of one shape, of rows that lie alike in memory.
        product = torch.cat([x.new_empty(0, weight.shape[1]), *(row.clone().unsqueeze(0) @ weight for row in x)])
        return product if bias is None else product + bias


def _natively(library: Library, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = x if x.stride(1) == 1 else x.contiguous()
    weight = weight if 1 in weight.stride() else weight.contiguous()
    offsets = None if bias is None else bias.float().contiguous()
    out = x.new_empty(x.shape[0], weight.shape[1])
    library.product(
        PlainProduct(
            x=x.data_ptr(),
            weight=weight.data_ptr(),
            bias=None if offsets is None else offsets.data_ptr(),
            out=out.data_ptr(),
            count=x.shape[0],
            in_features=x.shape[1],
            columns=weight.shape[1],
            x_stride=x.stride(0),
            in_stride=weight.stride(0),
            column_stride=weight.stride(1),
            out_stride=out.stride(0),
            is_bf16=x.dtype is torch.bfloat16,
        )
    )
    return out


def _linear(multiply: Multiply, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return multiply(x.reshape(-1, x.shape[-1]), weight.t(), bias).view(*x.shape[:-1], weight.shape[0])


def _addmm(
    multiply: Multiply, added: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    if added.dim() == 1 and beta == alpha == 1:
        return multiply(x, weight, added)
    return _sum(added, multiply(x, weight), beta, alpha)


def _bmm(multiply: Multiply, x: Tensor, weights: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], x.shape[1], weights.shape[2])
    for i in range(len(x)):
        out[i] = multiply(x[i], weights[i])
    return out


def _baddbmm(
    multiply: Multiply, added: Tensor, x: Tensor, weights: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    return _sum(added, _bmm(multiply, x, weights), beta, alpha)


def _sum(added: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    """What is added does not matter, even if it is NaN, where `beta` is 0."""
    return product * alpha if beta == 0 else added * beta + product * alpha


def _mv(multiply: Multiply, matrix: Tensor, vector: Tensor) -> Tensor:
    return multiply(matrix, vector.unsqueeze(1)).squeeze(1)


def _dot(multiply: Multiply, x: Tensor, y: Tensor) -> Tensor:
    return multiply(x.unsqueeze(0), y.unsqueeze(1)).view(())


def _grouped_mm(multiply: Multiply, x: Tensor, weights: Tensor, offs: Tensor | None = None, **others: Any) -> Tensor:
    """Rows up to `offs[i]` belong to the weight i: how a mixture of experts multiplies."""
    if offs is None or x.dim() != 2 or weights.dim() != 3 or any(value is not None for value in others.values()):
        raise NotImplementedError("a product in groups of another kind")
    out = x.new_zeros(x.shape[0], weights.shape[2])
    first = 0
    for weight, end in zip(weights, offs.tolist(), strict=True):
        if end > first:
            out[first:end] = multiply(x[first:end], weight)
        first = end
    return out


_ATEN = torch.ops.aten
_PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    _ATEN.linear.default: _linear,
    _ATEN.mm.default: lambda multiply, x, weight: multiply(x, weight),
    _ATEN.addmm.default: _addmm,
    _ATEN.bmm.default: _bmm,
    _ATEN.baddbmm.default: _baddbmm,
    _ATEN.mv.default: _mv,
    _ATEN.dot.default: _dot,
    _ATEN._grouped_mm.default: _grouped_mm,
}


def _is_of_single_numbers(func: Any) -> bool:
    """Whether each number of its result is a function of one number of its one tensor."""
    arguments = func._schema.arguments
    tensors = [i for i, argument in enumerate(arguments) if "Tensor" in str(argument.type)]
    return torch.Tag.pointwise in func.tags and tensors == [0] and str(arguments[0].type) == "Tensor"


def _in_whole_vectors(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    is_whole = x.numel() % _WHOLE_VECTORS == 0 and x.data_ptr() % _ALIGNMENT == 0 and x.is_contiguous()
    if is_whole or not x.is_floating_point():
        result: Tensor = func(x, *args, **kwargs)
        return result
    padded = x.new_zeros(-(-x.numel() // _WHOLE_VECTORS) * _WHOLE_VECTORS)
    padded[: x.numel()] = x.flatten()
    result = func(padded, *args, **kwargs)[: x.numel()].view(x.shape)
    return x.copy_(result) if func._schema.is_mutable else result


def check_device(device: torch.device) -> None:
    """Raises `ModelLoadError` where deterministic mode would promise what is not so."""
    if device.type != "cpu":
        raise ModelLoadError(
            f"deterministic mode is for CPUs alone so far, and the device is {device.type} (--device cpu)"
        )


def check_positions(causal_lm: nn.Module) -> None:
    """Raises `ModelLoadError` for positions that turn by other angles while some sequence is long."""
    for module in causal_lm.modules():
        types = getattr(module, "rope_type", None)
        for kind in types.values() if isinstance(types, dict) else (types,):
            if kind == "longrope" or "dynamic" in str(kind):
                raise ModelLoadError(
                    f"{type(causal_lm).__name__} cannot be served deterministically: its rotary positions ({kind})"
                    " depend on the longest sequence of a step"
                )


# Ends of the chunks in which the checked sequence is computed: beside another one, and alone. Single tokens, chunks
# that begin and end anywhere, few rows and many. The whole is longer than what the attention takes at once.
_ENDS = (
    ((1, 8, 40, 41, 50, 77), (30, 31, 32, 60, 61, 77)),
    ((1, 2, 5, 40, 76, 77),),
)


def check_deterministic(served: ServedModel, block_size: int) -> None:
    """Compute a sequence whole and alone, then in chunks of several sizes: not a bit may differ.

    Raises `ModelLoadError` for a model whose code mixes rows in a way that is not known here.
    """
    length = min(_ENDS[0][0][-1], served.max_context)
    whole = _computed(served, block_size, [[(0, 0, length)]], length)
    for ends in _ENDS:
        steps = _steps(*([min(end, length) for end in own] for own in ends))
        in_chunks = _computed(served, block_size, steps, length)
        differing = [i for i, (a, b) in enumerate(zip(whole, in_chunks, strict=True)) if not torch.equal(a, b)]
        if differing:
            raise ModelLoadError(
                f"{served.model.name} cannot be served deterministically: what it computes for the token at position"
                f" {differing[0]} depends on what shares the step"
            )


def _steps(*ends: list[int]) -> list[list[tuple[int, int, int]]]:
    """For each step the (sequence, first, end) that it computes, single tokens first."""
    spans = [[(i, a, b) for a, b in zip([0, *own], own, strict=False)] for i, own in enumerate(ends)]
    steps = [[part for part in step if part[1] < part[2]] for step in zip(*spans, strict=True)]
    return [sorted(step, key=lambda part: part[2] - part[1] > 1) for step in steps if step]


def _computed(
    served: ServedModel, block_size: int, steps: list[list[tuple[int, int, int]]], length: int
) -> list[Tensor]:
    """For each position of sequence 0 its hidden state and its logits, as one tensor."""
    width = math.ceil(length / block_size)
    layers = allocate_cache(served.backend, served.shapes, 2 * width, block_size, dtype=served.cache_dtype, device=_CPU)
    attention = PagedAttention(served.backend, layers)
    tables = np.arange(2 * width, dtype=np.int32).reshape(2, width)
    computed: list[Tensor] = []
    for step in steps:
        attention.begin_step(
            batch_metadata([span[1:] for span in step], tables[[s[0] for s in step]], block_size, _CPU)
        )
        sequences = torch.cat([torch.full((end - first,), i) for i, first, end in step])
        positions = torch.cat([torch.arange(first, end) for _, first, end in step])
        with attending(attention):
            hidden = served.model.hidden_states(
                (positions * 37 + sequences * 11 + 5) % served.model.vocab_size, positions
            )
        rows = torch.cat([hidden, served.model.logits(hidden)], dim=-1)
        computed += rows[sequences == 0]
    return computed
