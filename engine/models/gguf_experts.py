"""Experts of a GGUF file: in their blocks, or dequantized into the weights of transformers' modules, one by one.

A file has a layer's experts in one tensor (num_experts, out_features, in_features) for each of gate, up and down, and
perhaps gate and up together, and biases. transformers' modules have gate and up together, one behind the other or in
turns, and some have inputs first.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orcinus.engine.cpu.native_experts import NativeExperts
from orcinus.engine.kernels.library import Library
from orcinus.engine.models.expert_weights import KINDS, KINDS_OF, assembled, joined, obstacle_of
from orcinus.engine.models.gguf_blocks import BlockRows, is_quantized
from orcinus.engine.models.gguf_linears import PackedTypes
from orcinus.engine.platform.memory import MappedFiles

logger = logging.getLogger(__name__)

_TENSOR = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down|gate_up)_exps\.(weight|bias)")
_LAYER = re.compile(r"\.(\d+)\.")


class ExpertTensors:
    """Collects the experts' tensors of a file, and puts them into the model when all are known."""

    def __init__(self, causal_lm: Any) -> None:
        self._causal_lm = causal_lm
        self._modules = dict(_modules_with_experts(causal_lm))
        self._found: dict[int, dict[str, Any]] = {}

    def take(self, tensor: Any) -> bool:
        """Return whether a tensor of the file belongs to experts of the model. If so, it is remembered."""
        match = _TENSOR.fullmatch(tensor.name)
        if match is None or int(match[1]) not in self._modules:
            return False
        self._found.setdefault(int(match[1]), {})[f"{match[2]}.{match[3]}"] = tensor
        return True

    def put_in(
        self, weights: dict[str, Tensor], dtype: torch.dtype, library: Library | None, told: PackedTypes
    ) -> None:
        """Pack the experts of each layer for our kernels, with a library, or add what they are in `dtype`.

        Those that cannot be multiplied in their blocks are named in a warning.
        """
        mapped, obstacles = MappedFiles(), Counter[str]()
        for layer, tensors in sorted(self._found.items()):
            name = self._modules[layer]
            experts = self._causal_lm.get_submodule(name)
            obstacle = None if library is None else _obstacle(experts, tensors)
            if library is None or obstacle is not None:
                weights |= {f"{name}.{key}": weight for key, weight in _dequantized(experts, tensors, dtype)}
                if obstacle:
                    obstacles[obstacle] += 1
            else:
                self._causal_lm.set_submodule(name, _packed(experts, tensors, library, told))
            for tensor in tensors.values():
                mapped.release_bytes(tensor.data.ctypes.data, tensor.data.nbytes)
        for obstacle, count in obstacles.items():
            logger.warning("the experts of %d layers are dequantized to %s: %s", count, dtype, obstacle)


def _modules_with_experts(causal_lm: nn.Module) -> Iterator[tuple[int, str]]:
    for name, module in causal_lm.named_modules():
        weights = (getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None))
        layer = _LAYER.search(f".{name}.")
        if layer and all(isinstance(weight, nn.Parameter) and weight.dim() == 3 for weight in weights):
            yield int(layer[1]), name


def _obstacle(experts: Any, tensors: dict[str, Any]) -> str | None:
    """Return why experts cannot be multiplied in their blocks; an empty text if they have none."""
    if not all(is_quantized(tensor.tensor_type.name) for key, tensor in tensors.items() if key.endswith(".weight")):
        return ""
    return obstacle_of(experts)


def _packed(experts: Any, tensors: dict[str, Any], library: Library, told: PackedTypes) -> NativeExperts:
    rows = [_blocks_of(tensors, kind) for kind in KINDS]
    biases = [None if (bias := _bias_of(tensors, kind)) is None else bias.flatten() for kind in KINDS]
    native = NativeExperts(library, experts, [(part.form, part) for part in rows], biases)
    for part, size in zip(rows, native.bytes_of_weights, strict=True):
        told.add(part, size)
    return native


def _blocks_of(tensors: dict[str, Any], kind: str) -> BlockRows:
    """Return the rows of all experts."""
    tensor, order = _rows_of(tensors, kind)
    return BlockRows(tensor.data.reshape(-1, tensor.data.shape[-1]), tensor.tensor_type.name, order)


def _rows_of(tensors: dict[str, Any], kind: str) -> tuple[Any, NDArray[np.int64] | None]:
    """Return the tensor that a kind of weight is in, and which of its rows, those of all experts, are its."""
    if f"{kind}.weight" in tensors:
        return tensors[f"{kind}.weight"], None
    both = tensors["gate_up.weight"]
    return both, _half(np.arange(both.data.shape[0] * both.data.shape[1]).reshape(both.data.shape[:2]), kind).ravel()


def _half(both: NDArray[Any], kind: str) -> NDArray[Any]:
    width = both.shape[1] // 2
    return both[:, :width] if kind == "gate" else both[:, width:]


def _bias_of(tensors: dict[str, Any], kind: str) -> Tensor | None:
    """Return the biases of all experts, (num_experts, out_features)."""
    if (tensor := tensors.get(f"{kind}.bias")) is not None:
        return torch.from_numpy(_floats(tensor.data, tensor))
    both = tensors.get("gate_up.bias")
    if both is None or kind == "down":
        return None
    return torch.from_numpy(np.ascontiguousarray(_half(_floats(both.data, both), kind)))


def _dequantized(experts: Any, tensors: dict[str, Any], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a module by their names in it."""
    count = experts.down_proj.shape[0]
    sources = {kind: partial(_expert_rows, *_rows_of(tensors, kind), count) for kind in KINDS}
    yield from assembled(experts, sources, dtype)
    for key, kinds in KINDS_OF.items():
        biases = [bias for kind in kinds if (bias := _bias_of(tensors, kind)) is not None]
        if biases:
            of_experts = [joined(experts, list(parts)) for parts in zip(*biases, strict=True)]
            yield f"{key}_bias", torch.stack(of_experts).to(dtype)


def _expert_rows(tensor: Any, order: NDArray[np.int64] | None, count: int, expert: int) -> Tensor:
    if order is None:
        return torch.from_numpy(_floats(tensor.data[expert], tensor))
    flat = tensor.data.reshape(-1, tensor.data.shape[-1])
    return torch.from_numpy(_floats(flat[order.reshape(count, -1)[expert]], tensor))


def _floats(data: NDArray[Any], tensor: Any) -> NDArray[np.float32]:
    from gguf import dequantize

    values = dequantize(np.ascontiguousarray(data), tensor.tensor_type)
    return np.require(values, np.float32, requirements="W")
