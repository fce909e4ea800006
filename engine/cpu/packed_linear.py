"""Linear layers for a CPU with their weights laid out once for the kernels that multiply them, siblings merged.

Says which kernels those are: our own, in bfloat16 or in integers of 8 or 4 bits; where they do not run, oneDNN's for
bfloat16 and torch's for 8 bits. `pack_linears` changes a loaded model in place, layer by layer, so that at no time
there are two copies of more than one. Knows nothing of architectures but the usual names of projections that share an
input.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.cpu.grouped_weight import GroupedWeight
from orcinus.engine.cpu.int8_linear import Int8Linear, joined_bias
from orcinus.engine.cpu.joined_linear import JoinedLinears, LinearPart
from orcinus.engine.cpu.native_linear import Kind, NativeLinear, PackedWeight, can_multiply
from orcinus.engine.cpu.packed_sources import sources_of
from orcinus.engine.kernels.library import Library
from orcinus.engine.platform.device import cpu_has_bfloat16
from orcinus.engine.platform.memory import MappedFiles

logger = logging.getLogger(__name__)

# Siblings that are fed the same tensor. One product of their joined weights reads the input once.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

_KIND_OF_QUANTIZATION: dict[str | None, Kind] = {None: "bfloat16", "int8": "int8", "int4": "int4"}
# What a head is packed as where that is not what the other layers are, the first that this CPU multiplies: its rounding
# is not averaged out behind it.
_KINDS_OF_HEAD: dict[Kind, tuple[Kind, ...]] = {"int4": ("int8", "int8-groups")}

# Makes one layer of the weights (out_features, in_features) and biases of several that share their input.
Packer = Callable[[Sequence[Tensor], Sequence[Tensor | None]], nn.Module]


def native_kind(library: Library | None, dtype: torch.dtype, quantization: str | None) -> Kind | None:
    """Return the kind that our own kernels multiply in on this CPU, or None if they should not."""
    kind = _KIND_OF_QUANTIZATION[quantization]
    if library is None or not can_multiply(library, kind):
        return None
    return None if kind == "bfloat16" and dtype is not torch.bfloat16 else kind


def packer_for(
    library: Library | None, dtype: torch.dtype, quantization: str | None, *, is_deterministic: bool = False
) -> Packer | None:
    """Return the packing that this CPU multiplies fastest with; None if it is fastest with the weights as they are.

    With `is_deterministic`, among those in which a row's product does not depend on what other rows there are.
    """
    kind = native_kind(library, dtype, quantization)
    if kind is not None:
        assert library is not None
        return partial(NativeLinear, library, kind)
    if quantization == "int8":
        return Int8Linear
    return PackedLinear if dtype is torch.bfloat16 and not is_deterministic and _has_onednn() else None


def head_packer_for(pack: Packer) -> Packer:
    """Return the packing of a model's head, where its other layers have this one."""
    if isinstance(pack, partial) and pack.func is NativeLinear:
        library, kind = pack.args
        for of_head in _KINDS_OF_HEAD.get(kind, ()):
            if can_multiply(library, of_head):
                return partial(NativeLinear, library, of_head)
    return pack


def _has_onednn() -> bool:
    if not cpu_has_bfloat16():
        return False
    try:
        zeros = torch.zeros(16, 16, dtype=torch.bfloat16)
        PackedLinear([zeros], [None])(zeros)
        return True
    except (RuntimeError, AttributeError) as error:
        logger.warning("linear layers are not packed: %s", error)
        return False


def pack_linears(model: nn.Module, pack: Packer, dtype: torch.dtype, *, keep: Sequence[Tensor] = ()) -> int:
    """Pack every plain linear layer of this dtype but those whose weight is one of `keep`. Returns how many.

    Nothing here may name a layer for longer than it takes to pack it, or its weight would stay.
    """
    kept = {weight.data_ptr() for weight in keep}
    files = MappedFiles()
    count = 0
    for parent in [module for module in model.modules() if next(module.children(), None) is not None]:
        for names in _mergeable(parent, dtype, kept):
            siblings: list[Any] = [getattr(parent, name) for name in names]
            joined = JoinedLinears(_packed(siblings, pack), [sibling.out_features for sibling in siblings])
            for index, (name, sibling) in enumerate(zip(names, siblings, strict=True)):
                files.release(sibling.weight)
                setattr(parent, name, LinearPart(joined, index))
            count += len(names)
        child: Any
        for name, child in list(parent.named_children()):
            if _is_packable(child, dtype, kept):
                setattr(parent, name, _packed([child], pack))
                files.release(child.weight)
                count += 1
    return count


def pack_tied_head(causal_lm: Any, pack: Packer) -> bool:
    """Pack a head that shares its weight with the embedding, without having it twice. False where that cannot be.

    In bfloat16, and beside layers of 4 bits, the embedding then looks its rows up in the packed weight. In 8 bits it
    keeps its own: of a mapped file only the rows that are looked up take memory.
    """
    head, embedding = causal_lm.get_output_embeddings(), causal_lm.get_input_embeddings()
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None or type(head) is not nn.Linear:
        return False
    if head.weight.data_ptr() != embedding.weight.data_ptr():
        return False
    if pack is PackedLinear:  # a layout of oneDNN's own, which no row can be read from
        return False
    head_pack = head_packer_for(pack)
    packed = _packed([head], head_pack)
    is_shared = head_pack is not pack or (isinstance(packed, NativeLinear) and packed.packed.kind != "int8")
    if isinstance(packed, NativeLinear) and is_shared:
        causal_lm.set_input_embeddings(PackedEmbedding(packed.packed, embedding.weight.dtype))
    causal_lm.set_output_embeddings(packed)
    MappedFiles().release(head.weight)
    return True


def pack_own_head(causal_lm: Any, pack: Packer) -> bool:
    """Pack a head that is not to be packed like other layers and has a weight of its own. False for other heads."""
    head, head_pack = causal_lm.get_output_embeddings(), head_packer_for(pack)
    embedding = causal_lm.get_input_embeddings()
    if head_pack is pack or type(head) is not nn.Linear:
        return False
    if not isinstance(embedding, PackedEmbedding) and head.weight.data_ptr() == embedding.weight.data_ptr():
        return False
    causal_lm.set_output_embeddings(_packed([head], head_pack))
    MappedFiles().release(head.weight)
    return True


def packed_bytes(model: nn.Module) -> int:
    """Return the bytes of the weights that are packed."""
    return sum(getattr(module, "packed_bytes", 0) for module in model.modules())


def num_packed_parameters(model: nn.Module) -> int:
    """Return how many parameters are packed already, and none of torch's."""
    return sum(getattr(module, "num_packed", 0) for module in model.modules())


class PackedLinear(nn.Module):
    """Computes `F.linear` with a weight in oneDNN's layout: (..., in_features) to (..., out_features), in bfloat16.

    The one user of torch's private `mkldnn` operators.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        super().__init__()
        weight = torch.cat([weight.detach() for weight in weights])
        self.out_features, self.in_features = weight.shape
        self.bias = joined_bias(biases)
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.packed_bytes = weight.nbytes

    @property
    def weight(self) -> Tensor:
        """Return the weight unpacked again, (out_features, in_features), for a model that multiplies by hand."""
        return self._packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product


class PackedEmbedding(nn.Module):
    """Computes `nn.Embedding` over a packed weight: ids of any shape to (..., in_features).

    The weight is a head's, which counts its bytes, unless it `is_own`. Rows are multiplied by `scale` (Gemma).
    """

    def __init__(
        self, packed: PackedWeight | GroupedWeight, dtype: torch.dtype, *, is_own: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.packed = packed
        self._dtype = dtype
        self._scale = scale
        self.packed_bytes = packed.nbytes if is_own else 0
        self.num_packed = packed.out_features * packed.in_features if is_own else 0

    @property
    def weight(self) -> Tensor:
        """Return the weight unpacked again, (num_embeddings, embedding_dim)."""
        return self.packed.unpacked()

    def forward(self, ids: Tensor) -> Tensor:
        look_up = self.packed.exact_rows if isinstance(self.packed, GroupedWeight) else self.packed.rows
        rows = look_up(ids.flatten()).to(self._dtype)
        return (rows if self._scale == 1 else rows * self._scale).view(*ids.shape, -1)


@torch.no_grad()
def scale_of(embedding: nn.Embedding) -> float | None:
    """Return by what an embedding multiplies its rows; None if it does anything else with them. Its first row is lost.

    That is seen by the numbers that it gives, whatever its class says.
    """
    if type(embedding) is nn.Embedding:
        return 1.0
    row = 2.0 ** (torch.arange(embedding.embedding_dim) % 5 - 2)
    embedding.weight[0] = row
    given: Tensor = embedding(torch.zeros(1, dtype=torch.int64))[0].float()
    scale = float(given[0] / row[0])
    return scale if given.shape == row.shape and bool((given == row * scale).all()) else None


def _packed(linears: Sequence[Any], pack: Packer) -> Any:
    packed = pack(
        [_rows(linear) for linear in linears],
        [None if linear.bias is None else linear.bias.detach() for linear in linears],
    )
    if isinstance(packed, NativeLinear):
        packed.packed.sources = sources_of(linears)
    return packed


def _rows(linear: Any) -> Tensor:
    """Return the weight, (out_features, in_features)."""
    weight: Tensor = linear.weight.detach()
    return weight if isinstance(linear, nn.Linear) else weight.t()


def _mergeable(parent: nn.Module, dtype: torch.dtype, kept: set[int]) -> Iterator[tuple[str, ...]]:
    for names in _SIBLINGS:
        siblings = [getattr(parent, name, None) for name in names]
        if not all(_is_packable(sibling, dtype, kept) for sibling in siblings):
            continue
        if len({(s.in_features, s.bias is None) for s in siblings if isinstance(s, nn.Linear)}) == 1:
            yield names


def _is_packable(module: object, dtype: torch.dtype, kept: set[int]) -> bool:
    """Return whether a module may be packed: no subclass, which computes otherwise, and no shared or other weight."""
    if not isinstance(module, nn.Module) or not (type(module) is nn.Linear or is_conv1d(module)):
        return False
    weight = module.weight
    return isinstance(weight, Tensor) and weight.dtype is dtype and weight.data_ptr() not in kept


def is_conv1d(module: nn.Module) -> bool:
    """Return whether this is GPT-2's linear layer, whose weight is stored as (in_features, out_features)."""
    return type(module).__module__ == "transformers.pytorch_utils" and type(module).__name__ == "Conv1D"
