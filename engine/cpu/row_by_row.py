"""Deterministic mode: a token's numbers are a function of its own sequence, whatever shares the step, to the last bit.

Owns how torch's operations are run so that no row of a tensor has a say in another and none depends on where it lies.
That a loaded model is computed so is checked at start-up (`engine.startup.determinism`). How keys are summed is the
attention's matter (`token_by_token`), and packed layers are that of our kernels, which keep rows apart anyway.

torch itself promises no such thing: how a product sums depends on how many rows it has, and functions such as `exp` are
computed in one way in whole vectors and in another for what is left at the end.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from orcinus.engine.attention.native_backend import NATIVE_DTYPES
from orcinus.engine.kernels.library import Library
from orcinus.engine.kernels.structures import PlainProduct

# Numbers that no vectorized loop has a rest of, however wide its vectors and however often it is unrolled.
_WHOLE_VECTORS = 256
_ALIGNMENT = 64  # bytes


class RowByRow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes torch compute each row as if there were no others. CPU only; torch must have one thread.

    Products go to a kernel of ours, or without it row by row. Functions of single numbers are computed in whole
    vectors. Operations that torch makes of others are taken apart, so that no product is hidden in one.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: torch would disable its compiler at every operation, and here it never runs."""
        return False

    def __init__(self, library: Library | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._multiply = Multiply(library)
        self._handlers: dict[Any, Callable[..., Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self._handlers.get(func)
        if handler is None:
            handler = self._handlers[func] = self._handler_of(func)
        return handler(*args, **kwargs) if kwargs else handler(*args)

    def _handler_of(self, func: Any) -> Callable[..., Any]:
        if (product := _PRODUCTS.get(func)) is not None:
            return partial(product, self._multiply)
        return partial(_in_whole_vectors if _is_of_single_numbers(func) else self._decompose, func)

    def _decompose(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        self._handlers[func] = func
        return func(*args, **kwargs)


class Multiply:
    """Computes (count, n) times (n, columns), plus (columns,), each number summed in an order that n alone decides."""

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
    """Return the weighted sum; with a `beta` of 0 what is added does not matter, even if it is NaN."""
    return product * alpha if beta == 0 else added * beta + product * alpha


def _mv(multiply: Multiply, matrix: Tensor, vector: Tensor) -> Tensor:
    return multiply(matrix, vector.unsqueeze(1)).squeeze(1)


def _dot(multiply: Multiply, x: Tensor, y: Tensor) -> Tensor:
    return multiply(x.unsqueeze(0), y.unsqueeze(1)).view(())


def _grouped_mm(multiply: Multiply, x: Tensor, weights: Tensor, offs: Tensor | None = None, **others: Any) -> Tensor:
    """Multiply the rows up to `offs[i]` by weight i, as a mixture of experts does."""
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
    """Return whether each number of its result depends on one number of its one tensor."""
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
