"""Checkpoints whose weights are quantized already: packed for our kernels as they are, or dequantized.

Which tensors belong to one weight is told by their names (AWQ, GPTQ, compressed-tensors, MXFP4); how they are laid out,
by `integer_weights` and `mxfp4_weights`. What is of another kind is left to transformers.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from orcinus.engine.cpu.loaded_linears import LinearPacker, LoadedLinear
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.cpu.reordered_linear import ReorderedLinear
from orcinus.engine.models.integer_weights import (
    FloatWeight,
    IntegerWeight,
    awq_weight,
    gptq_weight,
    packed_weight,
    plain_weight,
)
from orcinus.engine.models.model_names import ModelNames
from orcinus.engine.models.packed_types import note_packed_types
from orcinus.engine.models.quantized_experts import (
    ExpertPart,
    StoredExperts,
    experts_in_blocks,
    experts_together,
    put_experts_in,
)
from orcinus.engine.platform.memory import MappedFiles

logger = logging.getLogger(__name__)

_MXFP4 = "MXFP4"
_WORDS = {"qweight", "qzeros", "scales", "g_idx"}
_OF_COMPRESSED = {"weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight"}
# Of activations and caches, which are not rounded by them here.
_UNUSED = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "v_scale",
    "q_scale",
)

T = TypeVar("T")
Stored = IntegerWeight | FloatWeight
Reader = Callable[[Mapping[str, Tensor]], Stored | None]


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """Holds what a checkpoint has: quantized weights by their modules' names, and all other tensors by their own.

    `tensors` are those that a weight is made of. `experts` are those of a layer by their module's name, if they are in
    one weight; else they are among the others until they are named as in the model.
    """

    method: str
    stored: dict[str, Stored]
    others: dict[str, Tensor]
    tensors: dict[str, list[Tensor]]
    experts: dict[str, StoredExperts]

    def named_as_in(self, causal_lm: Any) -> "QuantizedWeights | None":
        """Return the same by the model's names, its experts together; None if that is not all that there is to do."""
        names, parts = ModelNames(causal_lm), list[ExpertPart]()
        renamed = replace(self, stored={}, others={}, tensors={})
        for name, weight, tensors in self._weights():
            place = names.place_of(name)
            if place is None:
                return None
            if names.is_unused(place.name):
                continue
            if place.part is not None:
                parts.append(ExpertPart(place, name, weight, tensors))
            elif isinstance(weight, Tensor):
                renamed.others[place.name] = weight
            else:
                module = place.name.removesuffix(".weight")
                renamed.stored[module], renamed.tensors[module] = weight, tensors
        experts = experts_together(parts)
        if experts is None or not _have_modules(experts, self.experts, causal_lm):
            return None
        return replace(renamed, experts=self.experts | experts)

    def part(self, rename: Callable[[str], str | None]) -> "QuantizedWeights":
        """Return those whose names become others, by these."""

        def named(weights: Mapping[str, T], last: str) -> dict[str, T]:
            names = {name: rename(name + last) for name in weights}
            return {name.removesuffix(last): weights[old] for old, name in names.items() if name is not None}

        return replace(
            self,
            stored=named(self.stored, ".weight"),
            others=named(self.others, ""),
            tensors=named(self.tensors, ".weight"),
            experts=named(self.experts, ".weight"),
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all but experts that are in one weight, by the checkpoint's names."""
        quantized = {f"{name}.weight": weight.shape for name, weight in self.stored.items()}
        return quantized | {name: tuple(tensor.shape) for name, tensor in self.others.items()}

    def type_of(self, bits: int) -> str:
        """Return what weights of so many bits are called where it is told what is served."""
        return self.method if self.method == _MXFP4 else f"{self.method} in {bits} bits"

    def _weights(self) -> Iterator[tuple[str, Stored | Tensor, list[Tensor]]]:
        """Yield all weights by the checkpoint's names, with the tensors that they are made of."""
        for module, weight in self.stored.items():
            yield f"{module}.weight", weight, self.tensors[module]
        for name, tensor in self.others.items():
            yield name, tensor, [tensor]

    def shaped(self, causal_lm: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return tensors of the model's names and shapes, without numbers where they are quantized."""
        shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": weight.shape for name, weight in self.stored.items()}
        for module, experts in self.experts.items():
            is_transposed = getattr(causal_lm.get_submodule(module), "is_transposed", False)
            own = experts.shapes(is_transposed=is_transposed)
            shapes |= {f"{module}.{name}": shape for name, shape in own.items()}
        return self.others | {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}

    def dequantized(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return all tensors as if nothing had been quantized."""
        return self.others | {f"{name}.weight": weight.dequantized(dtype) for name, weight in self.stored.items()}

    def drop_zero_biases(self, expected: Mapping[str, Tensor]) -> None:
        """Forget biases that the model does not have and that add nothing, as GPTQ's quantizers write them."""
        for name in self.stored:
            bias = self.others.get(f"{name}.bias")
            if bias is not None and f"{name}.bias" not in expected and not bool(bias.any()):
                del self.others[f"{name}.bias"]

    def leave_out_all_but(self, expected: Mapping[str, Tensor]) -> list[str]:
        """Forget weights of other names, experts aside. Returns these names."""
        modules = [name for name in self.stored if f"{name}.weight" not in expected]
        others = [name for name in self.others if name not in expected]
        for name in modules:
            del self.stored[name], self.tensors[name]
        for name in others:
            del self.others[name]
        return [*(f"{name}.weight" for name in modules), *others]


def _have_modules(experts: Iterable[str], in_blocks: Iterable[str], causal_lm: Any) -> bool:
    """Return whether a model has modules of these names, and where they are in blocks, with gate and up in turns."""
    modules: dict[str, Any] = dict(causal_lm.named_modules())
    are_in_turns = (not getattr(modules.get(name), "is_concatenated", True) for name in in_blocks)
    return modules.keys() >= set(experts) and all(are_in_turns)


def find_quantized(settings: Any, tensors: Mapping[str, Tensor]) -> QuantizedWeights | None:
    """Return the weights of a checkpoint with these settings of its quantization; None for kinds that are not known."""
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(settings.get("quant_method"))
    if method == "mxfp4":
        return _in_blocks(tensors)
    readers = _readers(method, settings)
    if readers is None:
        return None
    own = _WORDS if method in ("awq", "gptq") else _OF_COMPRESSED
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last in own:
            parts[module][last] = tensor
    stored: dict[str, Stored] = {}
    for module, names in parts.items():
        read = next((reader for sign, reader in readers.items() if sign in names), None)
        if read is None:
            continue
        weight = read(names) if _is_whole(names) else None
        if weight is None:
            logger.info("%s is laid out in a way that is not known: the checkpoint is left to transformers", module)
            return None
        stored[module] = weight
    used = {f"{module}.{last}" for module in stored for last in parts[module]}
    made_of = {module: list(parts[module].values()) for module in stored}
    others = {name: tensor for name, tensor in tensors.items() if name not in used}
    unused = [name for name in others if name.rpartition(".")[2] in _UNUSED]
    for name in unused:
        del others[name]
    return QuantizedWeights(method, stored, others, made_of, {}) if stored else None


def _in_blocks(tensors: Mapping[str, Tensor]) -> QuantizedWeights | None:
    """Return the weights of a checkpoint with experts in MXFP4; None if there are none, or in another layout."""
    experts = experts_in_blocks(tensors)
    used = {id(tensor) for stored in experts.values() for tensor in stored.tensors}
    others = {name: tensor for name, tensor in tensors.items() if id(tensor) not in used}
    return QuantizedWeights(_MXFP4, {}, others, {}, experts) if experts else None


def _readers(method: str, settings: dict[str, Any]) -> dict[str, Reader] | None:
    """Return what reads a weight that has a tensor of this name, the first that applies."""
    if method == "awq":
        is_usual = settings.get("bits", settings.get("w_bit")) == 4
        layout = str(settings.get("version", settings.get("format", "gemm"))).lower()
        return {"qweight": awq_weight} if is_usual and layout == "gemm" else None
    if method == "gptq":
        layout = str(settings.get("checkpoint_format", settings.get("format", "gptq"))).lower()
        bits = int(settings.get("bits", 0))
        if layout not in ("gptq", "gptq_v2") or settings.get("dynamic"):
            return None
        return {"qweight": lambda tensors: gptq_weight(tensors, bits, is_first_format=layout == "gptq")}
    if method == "compressed-tensors":
        is_sparse = (settings.get("sparsity_config") or {}).get("format", "dense") != "dense"
        if is_sparse or (settings.get("transform_config") or {}).get("config_groups"):
            return None
        return {"weight_packed": packed_weight, "weight_scale": plain_weight}
    return None


def _is_whole(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a weight has all tensors that its layout needs."""
    needed = {"qweight", "qzeros", "scales"} if "qweight" in tensors else {"weight_scale"}
    needed |= {"weight_shape"} if "weight_packed" in tensors else set()
    needed |= {"weight"} if needed == {"weight_scale"} else set()
    return needed <= tensors.keys()


def put_in(
    found: QuantizedWeights, causal_lm: Any, packer: LinearPacker | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Put packed linear layers and experts into a model. Returns the tensors of all others, dequantized where need be.

    Without a packer all are dequantized.
    """
    modules: dict[str, Any] = dict(causal_lm.named_modules())
    weights, sizes, obstacles = dict(found.others), Counter[str](), Counter[str]()
    stored = [*found.stored.values(), *(weight for experts in found.experts.values() for weight in experts.weights)]
    with_offsets = {weight.bits for weight in stored if isinstance(weight, IntegerWeight) and weight.has_offsets}
    linears: dict[str, LoadedLinear] = {}
    for name, weight in found.stored.items():
        obstacle = _obstacle(name, weight, modules, causal_lm)
        if packer is None or obstacle is not None:
            obstacles[obstacle or ""] += 1
            weights[f"{name}.weight"] = weight.dequantized(dtype)
            continue
        assert isinstance(weight, IntegerWeight)
        # Of one form, so that those of one input can become one.
        rows = weight.with_offsets() if weight.bits in with_offsets else weight
        linears[name] = LoadedLinear(rows, weights.pop(f"{name}.bias", None))
    files = MappedFiles()
    for name, num_bytes in [] if packer is None else _put_linears(causal_lm, packer, linears):
        sizes[found.type_of(linears[name].rows.form.bits)] += num_bytes
        for tensor in found.tensors[name]:
            files.release(tensor)
    if packer is not None:
        for obstacle, count in sorted(obstacles.items()):
            logger.warning("%d weights of the checkpoint are dequantized: %s", count, obstacle)
    layers = {name: experts.with_offsets(with_offsets) for name, experts in found.experts.items()}
    for bits, size in put_experts_in(
        layers, causal_lm, weights, None if packer is None else packer.library, dtype
    ).items():
        sizes[found.type_of(bits)] += size
    note_packed_types(causal_lm, dict(sizes))
    return weights


def _put_linears(
    causal_lm: Any, packer: LinearPacker, linears: Mapping[str, LoadedLinear]
) -> Iterator[tuple[str, int]]:
    """Put layers into a model as a packer does, and those whose inputs are to be reordered."""
    orders = {name: linear.rows.order for name, linear in linears.items() if isinstance(linear.rows, IntegerWeight)}
    plain = {name: linear for name, linear in linears.items() if orders.get(name) is None}
    yield from packer.put_linears(causal_lm, plain)
    for name, order in orders.items():
        if order is not None:
            packed = packer.packed([name], [linears[name]])
            linear = NativeLinear.over(packer.library, packed, [linears[name].bias])
            causal_lm.set_submodule(name, ReorderedLinear(linear, order))
            yield name, linear.packed_bytes


def _obstacle(name: str, weight: Stored, modules: Mapping[str, Any], causal_lm: Any) -> str | None:
    """Return why a weight is not multiplied as it is, or None."""
    if type(modules.get(name)) is not nn.Linear or f"{name}.weight" in causal_lm.all_tied_weights_keys:
        return "they belong to no linear layer of their own"
    return weight.obstacle
