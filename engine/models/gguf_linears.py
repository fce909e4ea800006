"""Linear layers and embeddings of a GGUF file, packed from its own blocks in place of torch's modules.

A tensor is unpacked some rows at a time and packed for our kernels; at no time it is there in 16 or 32 bits. Weights
that are to be seen in another shape, or that belong to no plain module, are left to who dequantizes them.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from orcinus.engine.cpu.loaded_linears import LinearPacker, LoadedLinear
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.cpu.packed_linear import PackedEmbedding, scale_of
from orcinus.engine.models.gguf_blocks import BlockRows, is_quantized
from orcinus.engine.models.gguf_layout import Layout
from orcinus.engine.models.packed_types import note_packed_types
from orcinus.engine.platform.memory import MappedFiles

logger = logging.getLogger(__name__)


class PackedTypes:
    """Counts what is packed from blocks: bytes by the type of these, and weights that had to be rounded."""

    def __init__(self) -> None:
        self._sizes, self._rounded = Counter[str](), Counter[str]()

    def add(self, rows: BlockRows, num_bytes: int) -> None:
        self._sizes[rows.type_name] += num_bytes
        self._rounded[rows.type_name] += not rows.is_exact

    def tell(self, causal_lm: Any) -> None:
        """Note on the model what has been packed, and warn of what was rounded."""
        for kind, count in sorted(self._rounded.items()):
            if count:
                logger.warning("%d weights of type %s are rounded to 8 bits in groups of 32", count, kind)
        note_packed_types(causal_lm, dict(self._sizes))


@dataclass(frozen=True, slots=True)
class _Found:
    """A tensor that will be packed, and the module that it is the weight of."""

    module: str
    tensor: Any
    rows: BlockRows


class BlockModules:
    """Collects the tensors of a file that stay in blocks, and puts what multiplies them into the model.

    `stored` has the model's names of all that the file holds.
    """

    def __init__(self, causal_lm: Any, packer: LinearPacker, stored: set[str]) -> None:
        self.causal_lm = causal_lm
        self._packer = packer
        self._stored = stored
        self._modules: dict[str, Any] = dict(causal_lm.named_modules())
        self._has_head = all(name in stored for name in causal_lm.all_tied_weights_keys)
        self._tied_head = None if self._has_head else self._find_tied_head()
        embedding = causal_lm.get_input_embeddings()
        self._embedding_scale = scale_of(embedding) if isinstance(embedding, nn.Embedding) else None
        self._found: list[_Found] = []

    def take(self, tensor: Any, layout: Layout) -> bool:
        """Return whether a tensor of the file is one to be packed. If so, it is remembered."""
        module_name, _, last = layout.names.get(tensor.name, "").rpartition(".")
        if last != "weight" or not is_quantized(tensor.tensor_type.name) or tensor.data.ndim != 2:
            return False
        if not self._can_replace(module_name):
            return False
        rows = _rows_of(tensor, layout)
        if rows is None:
            return False
        self._found.append(_Found(module_name, tensor, rows))
        return True

    def put_in(self, weights: dict[str, Tensor], dtype: torch.dtype, told: PackedTypes) -> None:
        """Pack all, with the biases that `weights` has of them and loses here."""
        linears: dict[str, LoadedLinear] = {}
        embeddings: list[tuple[str, int]] = []
        by_name = {found.module: found for found in self._found}
        for name, found in by_name.items():
            if type(self._modules[name]) is nn.Linear:
                linears[name] = LoadedLinear(found.rows, weights.pop(f"{name}.bias", None))
            else:
                embeddings.append((name, self._put_embedding(name, found.rows, dtype)))
        mapped = MappedFiles()
        for name, num_bytes in chain(embeddings, self._packer.put_linears(self.causal_lm, linears)):
            found = by_name[name]
            told.add(found.rows, num_bytes)
            mapped.release_bytes(found.tensor.data.ctypes.data, found.tensor.data.nbytes)
        self._untie()

    def _put_embedding(self, name: str, rows: BlockRows, dtype: torch.dtype) -> int:
        """Put what looks rows up in the embedding's place, and the head's if that shares them. Returns their bytes."""
        packed = self._packer.packed([name], [LoadedLinear(rows)])
        if self._tied_head is not None:
            self.causal_lm.set_submodule(self._tied_head, NativeLinear.over(self._packer.library, packed, [None]))
        embedding = PackedEmbedding(packed, dtype, is_own=self._tied_head is None, scale=self._embedding_scale or 1.0)
        self.causal_lm.set_submodule(name, embedding)
        return packed.nbytes

    def _can_replace(self, name: str) -> bool:
        """Return whether a module is torch's own, all that it has is in the file, and who shares it is known."""
        module = self._modules.get(name)
        if type(module) is nn.Linear:
            return module.bias is None or f"{name}.bias" in self._stored
        if not isinstance(module, nn.Embedding) or module.max_norm is not None or self._embedding_scale is None:
            return False
        return module is self.causal_lm.get_input_embeddings() and (self._has_head or self._tied_head is not None)

    def _untie(self) -> None:
        """Have transformers tie no weights of modules that are gone."""
        keys = self.causal_lm.all_tied_weights_keys
        for target, source in list(keys.items()):
            names = [name.rpartition(".")[0] for name in (target, source)]
            if any(self.causal_lm.get_submodule(name) is not self._modules[name] for name in names):
                del keys[target]

    def _find_tied_head(self) -> str | None:
        """Return the name of a plain head that shares the embedding's weight."""
        head: Any = self.causal_lm.get_output_embeddings()
        keys = self.causal_lm.all_tied_weights_keys
        names = [name for name, module in self._modules.items() if module is head]
        is_tied = (
            type(head) is nn.Linear
            and getattr(head, "bias", None) is None
            and bool(names)
            and f"{names[0]}.weight" in keys
        )
        return names[0] if is_tied else None


def _rows_of(tensor: Any, layout: Layout) -> BlockRows | None:
    """Return the rows of a tensor in the model's order; None if they are more than moved rows or moved columns."""
    kind = tensor.tensor_type.name
    if (order := layout.row_order(tensor.name, tensor.data.shape[0])) is not None:
        return BlockRows(tensor.data, kind, order)
    rows = BlockRows(tensor.data, kind)
    columns = layout.column_order(tensor.name, rows.shape[1])
    return None if columns is None else BlockRows(tensor.data, kind, columns=columns)
