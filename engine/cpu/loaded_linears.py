"""Puts packed weights in the places of a model's linear layers while it is loaded.

What a native layer multiplies with at once is packed as one. Knows nothing of files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from torch import Tensor

from orcinus.engine.cpu.grouped_weight import GroupedWeight, GroupForm, RowSource
from orcinus.engine.cpu.joined_linear import RUN, joined_parts
from orcinus.engine.cpu.layer_parts import Place, parts_of
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.cpu.packed_sources import Source
from orcinus.engine.cpu.packed_store import KeptProducts
from orcinus.engine.kernels.library import Library


class FormedRows(RowSource, Protocol):
    """Has a weight that is packed in a form of its own."""

    @property
    def form(self) -> GroupForm: ...


@dataclass(frozen=True, slots=True)
class LoadedLinear:
    """Holds what a linear layer, or an embedding, is made of."""

    rows: FormedRows
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Product:
    """Names the layers whose weights are packed as one, which take turns if it `alternates`."""

    names: list[str]
    alternates: bool = False


class LinearPacker:
    """Packs what a checkpoint has in groups, but for what is kept of an earlier start.

    A model must have all of its own modules when its layers are put in. What is kept is named as in the model, behind
    the `prefix`.
    """

    def __init__(self, library: Library, kept: KeptProducts | None = None, prefix: str = "") -> None:
        self.library = library
        self._kept = kept or KeptProducts()
        self._prefix = prefix

    def of_part(self, name: str) -> "LinearPacker":
        """Return what packs a part of a model that has names of its own."""
        return LinearPacker(self.library, self._kept, f"{self._prefix}{name}.")

    def put_linears(self, causal_lm: Any, linears: Mapping[str, LoadedLinear]) -> Iterator[tuple[str, int]]:
        """Put layers into a model by their names. Yields the name of each, and its bytes, once it is there."""
        for product in _products(causal_lm, {name: linear.rows for name, linear in linears.items()}):
            own = [linears[name] for name in product.names]
            packed = self.packed(product.names, own, alternates=product.alternates)
            linear = NativeLinear.over(self.library, packed, [each.bias for each in own])
            sizes = [each.rows.shape[0] for each in own]
            parts = joined_parts(linear, sizes, [None] * len(sizes), alternates=product.alternates)
            for name, size, part in zip(product.names, sizes, parts, strict=True):
                causal_lm.set_submodule(name, part)
                yield name, packed.nbytes * size // packed.out_features

    def packed(
        self, names: Sequence[str], linears: Sequence[LoadedLinear], *, alternates: bool = False
    ) -> GroupedWeight:
        """Return the weight of layers of one form and one input, of these names."""
        rows, biases, form = [each.rows for each in linears], [each.bias for each in linears], linears[0].rows.form
        shapes, names = [each.shape for each in rows], [f"{self._prefix}{name}" for name in names]
        packed = self._kept.weight(self.library, form, names, shapes, biases, alternates=alternates)
        if packed is None:
            packed = GroupedWeight(self.library, form, rows, biases, alternates=alternates)
        packed.sources = tuple(Source(name, size) for name, (size, _) in zip(names, shapes, strict=True))
        return packed


def _products(causal_lm: Any, rows: Mapping[str, FormedRows]) -> list[_Product]:
    """Return what to pack as one, each layer in one product, in their order."""
    names = {module: name for name, module in causal_lm.named_modules()}
    together: dict[str, _Product] = {}
    for parts in filter(None, map(parts_of, names)):
        gated = [names[place.module] for place in parts.gated[:2]]
        found = [_Product(run) for run in _runs(parts.mixer.projections, names, rows)]
        if gated and _can_take_turns([rows.get(name) for name in gated]):
            found.append(_Product(gated, alternates=True))
        together |= {name: product for product in found for name in product.names}
    products = {name: together.get(name, _Product([name])) for name in rows}
    return [product for name, product in products.items() if name == product.names[0]]


def _runs(places: Sequence[Place], names: Mapping[Any, str], rows: Mapping[str, FormedRows]) -> list[list[str]]:
    """Return the layers that follow one another and have weights of one form, by their names."""
    own = [names[place.module] for place in places if place.order is None]
    by_form = groupby(own, lambda name: rows[name].form if name in rows else None)
    return [list(run) for form, run in by_form if form is not None]


def _can_take_turns(both: Sequence[FormedRows | None]) -> bool:
    gate, up = both
    if gate is None or up is None:
        return False
    return gate.form == up.form and gate.shape == up.shape and gate.shape[0] % RUN == 0
