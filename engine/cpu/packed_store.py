"""The packed weights of a model as tensors and a description, and modules over them in place of a model's plain layers.

What is put in before a model is probed is what would have been packed afterwards. What a checkpoint has in groups is
asked for product by product instead, while it is loaded. Knows nothing of files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from orcinus.engine.cpu.decoder_layers import NativeDecoder
from orcinus.engine.cpu.grouped_weight import GroupedWeight, GroupForm
from orcinus.engine.cpu.joined_linear import LinearPart, joined_parts
from orcinus.engine.cpu.native_linear import GROUP_FORMS, Kind, NativeLinear, PackedWeight
from orcinus.engine.cpu.packed_linear import PackedEmbedding, is_conv1d
from orcinus.engine.kernels.library import Library

_KINDS: dict[str, Kind] = {"int8": "int8", "int4": "int4", "int8-groups": "int8-groups"}

Packed = PackedWeight | GroupedWeight
Description = list[dict[str, Any]]


def described(causal_lm: Any) -> tuple[dict[str, Tensor], Description] | None:
    """Return the tensors of all packed weights by names, and what they are; None if some cannot be put in again."""
    tensors: dict[str, Tensor] = {}
    products: Description = []
    embedding = causal_lm.get_input_embeddings()
    for packed in _packed_weights(causal_lm):
        kind = _kind_of(packed)
        if kind is None or not packed.sources:
            return None
        tensors |= {f"{len(products)}.{name}": tensor for name, tensor in packed.tensors.items()}
        products.append(
            {
                "kind": kind,
                "in_features": packed.in_features,
                "alternates": packed.alternates,
                "has_embedding": isinstance(embedding, PackedEmbedding) and embedding.packed is packed,
                "sources": [[source.name, source.out_features] for source in packed.sources],
            }
        )
    return (tensors, products) if products else None


def described_groups(causal_lm: Any) -> tuple[dict[str, Tensor], Description] | None:
    """Return the same of what a checkpoint had in groups, for `KeptProducts`; None if there is nothing of that."""
    found = [packed for packed in _packed_weights(causal_lm) if isinstance(packed, GroupedWeight) and packed.sources]
    products = [
        {
            "form": _numbers_of(packed.form),
            "alternates": packed.alternates,
            "sources": [source.name for source in packed.sources],
        }
        for packed in found
    ]
    named = [packed.tensors.items() for packed in found]
    tensors = {f"{i}.{name}": tensor for i, own in enumerate(named) for name, tensor in own}
    return (tensors, products) if products else None


class KeptProducts:
    """Holds the tensors of packed weights that `described_groups` described, by the layers that they are of."""

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, products: Sequence[dict[str, Any]] = ()) -> None:
        self._found = {
            tuple(product["sources"]): (product, _own(tensors or {}, i)) for i, product in enumerate(products)
        }

    def __len__(self) -> int:
        return len(self._found)

    def weight(
        self,
        library: Library,
        form: GroupForm,
        names: Sequence[str],
        shapes: Sequence[tuple[int, int]],
        biases: Sequence[Tensor | None],
        *,
        alternates: bool,
    ) -> GroupedWeight | None:
        """Return the weight of layers of these names and shapes, (out_features, in_features) each, if it is here."""
        product, tensors = self._found.get(tuple(names), ({}, {}))
        if product.get("form") != _numbers_of(form) or product["alternates"] != alternates:
            return None
        sizes = [size for size, _ in shapes]
        own = list(zip(sizes, biases, strict=True))
        try:
            return GroupedWeight.restored(
                library, form, (sum(sizes), shapes[0][1]), tensors, own, alternates=alternates
            )
        except ValueError:
            return None


def _numbers_of(form: GroupForm) -> dict[str, Any]:
    """Return a form as it is read from JSON."""
    return asdict(form) | {"table": None if form.table is None else list(form.table)}


def put_in(causal_lm: Any, library: Library, tensors: Mapping[str, Tensor], products: Description) -> None:
    """Put modules over packed weights in place of the layers that they were made of.

    Raises `ValueError` for a description that is not of this model, which is then as it was.
    """
    modules = dict(causal_lm.named_modules())
    embedding, head = causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()
    is_tied = head is not None and head.weight is embedding.weight
    restored = []
    for i, product in enumerate(products):
        restored.append((product, _restored(modules, library, product, _own(tensors, i))))
        first_name = product["sources"][0][0]
        if product["has_embedding"] and not (is_tied and modules[first_name] is head):
            raise ValueError(f"{first_name} is not a head that shares the embedding's weight")
    for product, linear in restored:
        names = [name for name, _ in product["sources"]]
        sizes = [size for _, size in product["sources"]]
        if product["has_embedding"]:
            causal_lm.set_input_embeddings(PackedEmbedding(linear.packed, embedding.weight.dtype))
        parts = joined_parts(linear, sizes, [None] * len(sizes), alternates=product["alternates"])
        for name, part in zip(names, parts, strict=True):
            causal_lm.set_submodule(name, part)


def _own(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the tensors of a product, by their own names."""
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{index}.")}


def _restored(
    modules: Mapping[str, nn.Module], library: Library, product: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> NativeLinear:
    biases: list[tuple[int, Tensor | None]] = []
    for name, size in product["sources"]:
        linear: Any = modules.get(name)
        if not (type(linear) is nn.Linear or (linear is not None and is_conv1d(linear))):
            raise ValueError(f"there is no linear layer {name}")
        shape = tuple(linear.weight.shape if type(linear) is nn.Linear else linear.weight.shape[::-1])
        if shape != (size, product["in_features"]):
            raise ValueError(f"{name} is {shape}, and not {(size, product['in_features'])}")
        biases.append((size, None if linear.bias is None else linear.bias.detach()))
    shape = (sum(size for size, _ in biases), product["in_features"])
    kind, alternates = _KINDS[product["kind"]], bool(product["alternates"])
    packed: Packed
    if (form := GROUP_FORMS.get(kind)) is not None:
        packed = GroupedWeight.restored(library, form, shape, tensors, biases, alternates=alternates)
    else:
        packed = PackedWeight.restored(library, kind, shape, tensors, biases, alternates=alternates)
    return NativeLinear.over(library, packed, [bias for _, bias in biases])


def _packed_weights(model: nn.Module) -> Iterator[Packed]:
    """Yield every packed weight of a model once."""
    seen: set[int] = set()
    for module in model.modules():
        found: list[Packed] = []
        if isinstance(module, NativeDecoder):
            found = [weight for layer in module.layers for weight in layer.weights]
        elif isinstance(module, NativeLinear | PackedEmbedding):
            found = [module.packed]
        elif isinstance(module, LinearPart) and isinstance(module.joined.linear, NativeLinear):
            found = [module.joined.linear.packed]
        for weight in found:
            if id(weight) not in seen:
                seen.add(id(weight))
                yield weight


def _kind_of(packed: Packed) -> Kind | None:
    """Return the kind that plain weights were rounded to, or None."""
    if isinstance(packed, PackedWeight):
        return packed.kind if packed.kind == "int8" else None
    return next((kind for kind, form in GROUP_FORMS.items() if form == packed.form), None)
