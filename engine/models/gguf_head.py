"""The weights of a head for multi-token prediction in a GGUF file: those of a block behind the model's last one.

llama.cpp lays the block's own layer out as it does the model's, so it is read as one of these, under their names; what
is before and behind it is `nextn.*`. Knows nothing of how a head computes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from orcinus.engine.cpu.loaded_linears import LinearPacker
from orcinus.engine.models.gguf_blocks import is_quantized
from orcinus.engine.models.gguf_file import arranged_weights
from orcinus.engine.models.gguf_layout import Layout, Values, layout_of
from orcinus.engine.models.language_model import decoder_of
from orcinus.engine.models.mtp_head import MtpHead, MtpHeadError, check_shape
from orcinus.engine.models.packed_types import note_packed_types, packed_types_of
from orcinus.engine.platform.gguf_reader import read_gguf, read_metadata

logger = logging.getLogger(__name__)

# What llama.cpp calls the parts of a head, and what they are called in `_HeadAsModel`.
_PARTS = {
    "nextn.eh_proj.weight": "mtp.eh_proj.weight",
    "nextn.enorm.weight": "mtp.enorm.weight",
    "nextn.hnorm.weight": "mtp.hnorm.weight",
    "nextn.shared_head_norm.weight": "mtp.norm.weight",
}
# Copies of the model's own weights.
_SHARED = (".nextn.embed_tokens.weight", ".nextn.shared_head_head.weight")
_LAST_NORM = "output_norm.weight"


def name_of_gguf_head(num_layers: int | str) -> str:
    """Return the name of the tensor by which a file of a model with so many layers has a head."""
    return f"blk.{num_layers}.nextn.eh_proj.weight"


def has_gguf_head(file: Path, num_layers: int) -> bool:
    """Return whether a file of a model with so many layers has a head behind them."""
    return name_of_gguf_head(num_layers) in read_metadata(file)[1]


def read_gguf_head(
    file: Path, head: MtpHead, causal_lm: Any, like: int, packer: LinearPacker | None
) -> dict[str, Tensor]:
    """Return the weights that a file has of a head, by its names, and by llama.cpp's those that nobody knows.

    The head's layer is one like that of this number. With a packer, what is in blocks is packed, in modules
    that take the place of the head's own. Raises `MtpHeadError` where these do not fit, and where transformers does not
    know how the model's layers are laid out.
    """
    reader = read_gguf(file)
    block, like_block = f"blk.{causal_lm.config.num_hidden_layers}.", f"blk.{like}."
    tensors = [
        tensor._replace(name=tensor.name.replace(block, like_block, 1))
        for tensor in reader.tensors
        if tensor.name.startswith(block) and not tensor.name.endswith(_SHARED)
    ]
    model = _HeadAsModel(head, causal_lm, like)
    layout = _layout(reader.fields["general.architecture"].contents(), model, [tensor.name for tensor in tensors])
    _check_matrices(tensors, layout, model)
    weights = arranged_weights(tensors, layout, model, causal_lm.dtype, packer)
    note_packed_types(head, packed_types_of(model))
    kinds = {kind for tensor in tensors if is_quantized(kind := tensor.tensor_type.name)}
    if packer is None and kinds:
        logger.info("the MTP head's weights in %s are dequantized to %s", ", ".join(sorted(kinds)), causal_lm.dtype)
    return {model.name_in_head(name): weight for name, weight in weights.items()}


class _HeadAsModel(nn.Module):
    """Looks, to what reads files, like a causal language model of which there is one layer, the head's."""

    def __init__(self, head: MtpHead, causal_lm: Any, like: int) -> None:
        super().__init__()
        self.config = causal_lm.config
        self.all_tied_weights_keys: dict[str, str] = {}
        self._layer_name = f"{_name_of_layers(causal_lm)}.{like}"
        first, *inner = self._layer_name.split(".")
        module: nn.Module = head.layer
        for name in reversed(inner):
            module = nn.ModuleDict({name: module})
        self.add_module(first, module)
        self.mtp = head

    def get_input_embeddings(self) -> None:
        """Return what looks tokens up, which a head has from its model."""

    def name_in_head(self, name: str) -> str:
        """Return what the head calls a weight of this model."""
        return name.replace(f"{self._layer_name}.", "layer.", 1).removeprefix("mtp.")


def _name_of_layers(causal_lm: Any) -> str:
    modules: dict[str, nn.Module] = dict(causal_lm.named_modules())
    layers = decoder_of(causal_lm).layers
    return next(name for name, module in modules.items() if module is layers)


def _check_matrices(tensors: Sequence[Any], layout: Layout, model: _HeadAsModel) -> None:
    """Raise `MtpHeadError` over a matrix of another shape than the head's: packed ones are multiplied as they are."""
    expected = model.state_dict()
    for tensor in tensors:
        name = layout.names.get(tensor.name, "")
        if name in expected and expected[name].dim() == len(tensor.shape) == 2:
            check_shape(model.name_in_head(name), [int(size) for size in reversed(tensor.shape)], expected[name].shape)


def _layout(architecture: str, model: nn.Module, tensors: list[str]) -> Layout:
    """Return the layout of a head's tensors: its norms are as the model's last one, its layer as one of the model's."""
    try:
        of_layer = layout_of(architecture, model, [*tensors, _LAST_NORM])
    except (NotImplementedError, ImportError) as error:
        raise MtpHeadError(f"the layout of its layer is not known: {error}") from error
    short_names = {name: name.split(".", 2)[2] for name in tensors}
    parts = {name: _PARTS[short] for name, short in short_names.items() if short in _PARTS}

    def arrange(name: str, values: Values, weights: dict[str, Tensor]) -> Values | None:
        if name not in parts:
            return of_layer.arrange(name, values, weights)
        return of_layer.arrange(_LAST_NORM, values, weights) if values.ndim == 1 else values

    known = of_layer.names | parts
    unknown = {name: short for name, short in short_names.items() if name not in known and "_exps." not in name}
    return Layout(known | unknown, arrange)
