"""Experts of quantized checkpoints: packed for our kernels as they are, or dequantized, a layer at a time.

A checkpoint has some weights for each expert, or all of a layer's in blocks (gpt-oss); transformers' modules have one
for gate and up of all, and one for down.
"""

import logging
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from orcinus.engine.cpu.grouped_weight import GroupedRows
from orcinus.engine.cpu.native_experts import NativeExperts
from orcinus.engine.kernels.library import Library
from orcinus.engine.models.expert_weights import KINDS, KINDS_OF, assembled, obstacle_of, parted
from orcinus.engine.models.integer_weights import FloatWeight, IntegerWeight
from orcinus.engine.models.model_names import Place
from orcinus.engine.models.mxfp4_weights import Mxfp4Weight
from orcinus.engine.platform.memory import MappedFiles

logger = logging.getLogger(__name__)

Packable = IntegerWeight | Mxfp4Weight
ExpertWeight = Packable | FloatWeight | Tensor  # the last is not quantized


@dataclass(frozen=True, slots=True)
class StoredExperts:
    """Holds the weights of a layer's experts by their kinds, one expert after the other, and what they are made of."""

    kinds: dict[str, list[ExpertWeight]]
    tensors: list[Tensor]

    @property
    def weights(self) -> list[ExpertWeight]:
        return [weight for weights in self.kinds.values() for weight in weights]

    def shapes(self, *, is_transposed: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what a module has in their place, by names in it."""
        found: dict[str, tuple[int, ...]] = {}
        for name, kinds in KINDS_OF.items():
            rows = sum(self.kinds[kind][0].shape[0] for kind in kinds)
            columns = self.kinds[kinds[0]][0].shape[1]
            found[name] = (len(self.kinds["down"]), *((columns, rows) if is_transposed else (rows, columns)))
        return found

    def packable(self, kind: str) -> list[Packable]:
        """Return those of a kind that our kernels may multiply as they are."""
        return [weight for weight in self.kinds[kind] if isinstance(weight, IntegerWeight | Mxfp4Weight)]

    def rows(self, kind: str) -> "StackedRows":
        """Return the rows of all experts, which are all packable."""
        return StackedRows(self.packable(kind))

    def with_offsets(self, bits: Container[int]) -> "StoredExperts":
        """Return the same, weights of so many bits in the form of those that have zero points."""
        kinds = {kind: [_with_offsets(weight, bits) for weight in weights] for kind, weights in self.kinds.items()}
        return StoredExperts(kinds, self.tensors)

    def is_even(self) -> bool:
        """Return whether all experts have all kinds of weights, of the same shapes."""
        gate, up, down = (self.kinds.get(kind, []) for kind in KINDS)
        shapes = {(tuple(a.shape), tuple(b.shape), tuple(c.shape)) for a, b, c in zip(gate, up, down, strict=False)}
        if not len(gate) == len(up) == len(down) > 0 or len(shapes) > 1:
            return False
        first, second, third = shapes.pop()
        return first == second == third[::-1]


def _with_offsets(weight: ExpertWeight, bits: Container[int]) -> ExpertWeight:
    return weight.with_offsets() if isinstance(weight, IntegerWeight) and weight.bits in bits else weight


class StackedRows:
    """Reads weights of one form as one, each below the one before."""

    def __init__(self, weights: Sequence[Packable]) -> None:
        self._weights = weights
        self.form = weights[0].form
        self._ends = list(accumulate(weight.shape[0] for weight in weights))

    @property
    def shape(self) -> tuple[int, int]:
        return self._ends[-1], self._weights[0].shape[1]

    def raw(self) -> None:
        """Return that no kernel packs it as it is stored."""

    def part(self, first: int, end: int) -> GroupedRows:
        """Return some of the rows."""
        parts: list[GroupedRows] = []
        for weight, last in zip(self._weights, self._ends, strict=True):
            start = last - weight.shape[0]
            if start < end and first < last:
                parts.append(weight.part(max(first - start, 0), min(end, last) - start))
        return parts[0] if len(parts) == 1 else _below_each_other(parts)


def _below_each_other(parts: Sequence[GroupedRows]) -> GroupedRows:
    names = [field.name for field in fields(GroupedRows) if getattr(parts[0], field.name) is not None]
    return GroupedRows(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """Names a weight of one expert and its place in the model, and holds what the checkpoint has of it."""

    place: Place
    name: str
    weight: ExpertWeight
    tensors: list[Tensor]

    @property
    def number(self) -> list[tuple[int, str]]:
        """Return what experts are sorted by: their names, with numbers as such."""
        return [(int(part), "") if part.isdigit() else (-1, part) for part in self.name.split(".")]


def experts_together(parts: Sequence[ExpertPart]) -> dict[str, StoredExperts] | None:
    """Return experts by the names of their modules; None unless each of a layer has a gate, an up and a down."""
    layers: dict[str, StoredExperts] = {}
    for part in sorted(parts, key=lambda part: part.number):
        module, _, last = part.place.name.rpartition(".")
        if last not in KINDS_OF or part.place.part is None:
            return None
        layer = layers.setdefault(module, StoredExperts({kind: [] for kind in KINDS}, []))
        layer.kinds[KINDS_OF[last][part.place.part]].append(part.weight)
        layer.tensors.extend(part.tensors)
    return layers if all(layer.is_even() for layer in layers.values()) else None


def experts_in_blocks(tensors: Mapping[str, Tensor]) -> dict[str, StoredExperts]:
    """Return the experts in MXFP4 by the names of their modules; none at all if some are laid out in another way.

    Blocks are (num_experts, out_features, num_groups, 16), with rows of gate and up in turns.
    """
    layers: dict[str, StoredExperts] = {}
    for name in tensors:
        module, _, last = name.rpartition(".")
        if last != "gate_up_proj_blocks":
            continue
        parts = [tensors.get(f"{module}.{weight}_{part}") for weight in KINDS_OF for part in ("blocks", "scales")]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or any(part.dim() != dims for part, dims in zip(found, (4, 3, 4, 3), strict=True)):
            return {}
        both, both_scales, down, down_scales = found
        kinds = {
            "gate": _each(both[:, ::2], both_scales[:, ::2]),
            "up": _each(both[:, 1::2], both_scales[:, 1::2]),
            "down": _each(down, down_scales),
        }
        layers[module] = StoredExperts(kinds, found)
        if both.shape[:-1] != both_scales.shape or down.shape[:-1] != down_scales.shape or not layers[module].is_even():
            return {}
    return layers


def _each(blocks: Tensor, exponents: Tensor) -> list[ExpertWeight]:
    return [Mxfp4Weight(*parts) for parts in zip(blocks, exponents, strict=True)]


def put_experts_in(
    layers: Mapping[str, StoredExperts],
    causal_lm: Any,
    weights: dict[str, Tensor],
    library: Library | None,
    dtype: torch.dtype,
) -> Counter[int]:
    """Put the packed experts of each layer into a model, or add to `weights` what they are in `dtype`.

    Biases of those that are packed are taken from there. Returns the bytes that are packed, by the bits of a weight. A
    warning says what could not be packed.
    """
    sizes, obstacles, files = Counter[int](), Counter[str](), MappedFiles()
    for name, stored in layers.items():
        experts = causal_lm.get_submodule(name)
        obstacle = None if library is None else _obstacle(stored, experts)
        if library is None or obstacle is not None:
            plain = {kind: partial(_plain_rows, of_kind, dtype) for kind, of_kind in stored.kinds.items()}
            weights |= {f"{name}.{key}": weight for key, weight in assembled(experts, plain, dtype)}
            obstacles[obstacle or ""] += 1
        else:
            biases = _taken_biases(name, experts, weights)
            rows_of = [stored.rows(kind) for kind in KINDS]
            native = NativeExperts(library, experts, [(rows.form, rows) for rows in rows_of], biases)
            causal_lm.set_submodule(name, native)
            for rows, size in zip(rows_of, native.bytes_of_weights, strict=True):
                sizes[rows.form.bits] += size
        for tensor in stored.tensors:
            files.release(tensor)
    for obstacle, count in sorted(obstacles.items()):
        if obstacle:
            logger.warning("the experts of %d layers are dequantized to %s: %s", count, dtype, obstacle)
    return sizes


def _obstacle(stored: StoredExperts, experts: Any) -> str | None:
    """Return why experts are not multiplied as they are; an empty text if they are not quantized."""
    if all(isinstance(weight, Tensor) for weight in stored.weights):
        return ""
    for weight in stored.weights:
        if (obstacle := _obstacle_of(weight)) is not None:
            return obstacle
    if any(len({weight.form for weight in stored.packable(kind)}) > 1 for kind in KINDS):
        return "not all of them are quantized alike"
    return obstacle_of(experts)


def _obstacle_of(weight: ExpertWeight) -> str | None:
    if isinstance(weight, Tensor):
        return "not all of them are quantized"
    if isinstance(weight, IntegerWeight) and weight.order is not None:
        return "their inputs are in an order of their own"
    return weight.obstacle


def _plain_rows(weights: Sequence[ExpertWeight], dtype: torch.dtype, expert: int) -> Tensor:
    weight = weights[expert]
    return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantized(dtype)


def _taken_biases(name: str, experts: Any, weights: dict[str, Tensor]) -> list[Tensor | None]:
    """Take the biases of a module out of `weights`. Returns those of each kind, one expert's after the other's."""
    both, down = (weights.pop(f"{name}.{key}_bias", None) for key in KINDS_OF)
    halves = (None, None) if both is None else parted(experts, both)
    return [None if bias is None else bias.flatten() for bias in (*halves, down)]
