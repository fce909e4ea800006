"""Linear layers for a CPU in bfloat16: weights laid out once as oneDNN multiplies them, sibling projections merged.

The one module that calls torch's private `mkldnn` operators. `pack_linears` changes a loaded model in place, layer by
layer, so that at no time there are two copies of more than one. Knows nothing of architectures but the usual names of
projections that share an input.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from engine.device import cpu_has_bfloat16
from engine.mapped_weights import MappedFiles

logger = logging.getLogger(__name__)

# Siblings that are fed the same tensor. One product of their joined weights reads the input once.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch and this processor multiply packed weights faster than plain ones."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not cpu_has_bfloat16():
        return False
    try:
        PackedLinear(torch.zeros(16, 16, dtype=dtype), None)(torch.zeros(1, 16, dtype=dtype))
        return True
    except (RuntimeError, AttributeError) as error:
        logger.warning("linear layers are not packed: %s", error)
        return False


def pack_linears(model: nn.Module, *, keep: Sequence[Tensor] = ()) -> int:
    """Pack every plain `nn.Linear` inside `model` but those whose weight is one of `keep`. Returns how many."""
    kept = {weight.data_ptr() for weight in keep}
    files = MappedFiles()
    count = 0
    for parent in list(model.modules()):
        for names in _mergeable(parent, kept):
            merge = _Merge([getattr(parent, name) for name in names])
            for index, name in enumerate(names):
                files.let_go(getattr(parent, name).weight)
                setattr(parent, name, _MergedLinear(merge, index))
            count += len(names)
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and _is_packable(child, kept):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
                files.let_go(child.weight)
                count += 1
    return count


class PackedLinear(nn.Module):
    """`F.linear` with a packed weight: (..., in_features) to (..., out_features), in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features), unpacked once more: for the odd model that multiplies by hand."""
        return self._packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product


class _Merge:
    """One product for projections of one input. Input and product are kept until every sibling has its part."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
        self.linear = PackedLinear(
            torch.cat([linear.weight.detach() for linear in linears]), torch.cat(biases) if biases else None
        )
        self.sizes = [linear.out_features for linear in linears]
        self._input: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()
        self._num_missing = 0

    def part(self, index: int, x: Tensor) -> Tensor:
        if x is not self._input:
            self._input = x
            self._parts = torch.split(self.linear(x), self.sizes, dim=-1)
            self._num_missing = len(self.sizes)
        part = self._parts[index]
        self._num_missing -= 1
        if self._num_missing == 0:
            self._input, self._parts = None, ()
        return part


class _MergedLinear(nn.Module):
    """One of the merged projections. Its result is a part of the product's rows, not contiguous."""

    def __init__(self, merge: _Merge, index: int) -> None:
        super().__init__()
        self._merge = merge
        self._index = index
        self.in_features, self.out_features = merge.linear.in_features, merge.sizes[index]

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features), unpacked once more."""
        return torch.split(self._merge.linear.weight, self._merge.sizes)[self._index]

    @property
    def bias(self) -> Tensor | None:
        joined = self._merge.linear.bias
        return None if joined is None else torch.split(joined, self._merge.sizes)[self._index]

    def forward(self, x: Tensor) -> Tensor:
        return self._merge.part(self._index, x)


def _mergeable(parent: nn.Module, kept: set[int]) -> Iterator[tuple[str, ...]]:
    for names in _SIBLINGS:
        siblings = [getattr(parent, name, None) for name in names]
        if not all(_is_packable(sibling, kept) for sibling in siblings):
            continue
        if len({(s.in_features, s.bias is None) for s in siblings if isinstance(s, nn.Linear)}) == 1:
            yield names


def _is_packable(module: object, kept: set[int]) -> bool:
    """Subclasses compute something of their own; hooks and shared weights expect the module as it is."""
    return type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and module.weight.data_ptr() not in kept
