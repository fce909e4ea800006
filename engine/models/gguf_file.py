"""Weights of a GGUF file: in their blocks where our kernels multiply them, else dequantized one after the other.

transformers knows what llama.cpp calls a weight and how it has laid it out; gguf knows the blocks. transformers' own
loading goes through a copy of all weights, and through blocks that stay quantized where it finds kernels for them.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orcinus.engine.cpu.loaded_linears import LinearPacker
from orcinus.engine.models.gguf_experts import ExpertTensors
from orcinus.engine.models.gguf_layout import Layout, layout_of
from orcinus.engine.models.gguf_linears import BlockModules, PackedTypes
from orcinus.engine.platform.gguf_reader import read_gguf
from orcinus.engine.platform.memory import MappedFiles

logger = logging.getLogger(__name__)

_ROPE_FACTORS = "rope_freqs.weight"
_BLOCK = re.compile(r"blk\.(\d+)\.")


def read_gguf_weights(
    file: Path, causal_lm: Any, dtype: torch.dtype, packer: LinearPacker | None = None
) -> dict[str, Tensor]:
    """Return the weights that the file has of the model, by the model's names.

    None at all if transformers reads files of this architecture in another way. With a packer, quantized weights of
    linear layers, experts and the embedding are packed by it, in modules that take the place of the model's own, and
    are not among those that are returned.
    """
    reader = read_gguf(file)
    architecture = reader.fields["general.architecture"].contents()
    tensors = [tensor for tensor in reader.tensors if not _is_behind_the_last_layer(tensor.name, causal_lm)]
    try:
        layout = layout_of(architecture, causal_lm, [tensor.name for tensor in tensors])
    except (ImportError, NotImplementedError) as error:
        logger.info("a GGUF file of %s is left to transformers: %s", architecture, error)
        return {}
    return arranged_weights(tensors, layout, causal_lm, dtype, packer)


def arranged_weights(
    tensors: Sequence[Any], layout: Layout, causal_lm: Any, dtype: torch.dtype, packer: LinearPacker | None
) -> dict[str, Tensor]:
    """Return what tensors of gguf's reader are of a model, but for those that are packed."""
    from gguf import dequantize

    weights: dict[str, Tensor] = {}
    mapped, told = MappedFiles(), PackedTypes()
    stored = {layout.names[tensor.name] for tensor in tensors if tensor.name in layout.names}
    experts = ExpertTensors(causal_lm)
    in_blocks = None if packer is None else BlockModules(causal_lm, packer, stored)
    for tensor in tensors:
        if tensor.name == _ROPE_FACTORS:
            _divide_angles(causal_lm, _tensor(tensor.data, torch.float32))
        if experts.take(tensor) or (in_blocks is not None and in_blocks.take(tensor, layout)):
            continue
        values = layout.arrange(tensor.name, dequantize(tensor.data, tensor.tensor_type), weights)
        if values is not None and tensor.name in layout.names:
            weights[layout.names[tensor.name]] = _tensor(values, dtype)
        _convert_new(weights, dtype)
        mapped.release_bytes(tensor.data.ctypes.data, tensor.data.nbytes)
    experts.put_in(weights, dtype, None if packer is None else packer.library, told)
    if in_blocks is not None:
        in_blocks.put_in(weights, dtype, told)
        told.tell(causal_lm)
    return weights


def _is_behind_the_last_layer(name: str, causal_lm: Any) -> bool:
    """Return whether a tensor is of a head for multi-token prediction, whose layers come behind the model's."""
    match = _BLOCK.match(name)
    return match is not None and int(match[1]) >= causal_lm.config.num_hidden_layers


def _tensor(values: Any, dtype: torch.dtype) -> Tensor:
    writable = np.require(values, requirements="W")  # of what is not, as of a mapped file, torch makes a warning
    return torch.empty(values.shape, dtype=dtype).copy_(torch.from_numpy(writable))


def _convert_new(weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Convert what the processor itself has put there, in float32."""
    for name, weight in weights.items():
        if weight.dtype != dtype:
            weights[name] = weight.to(dtype)


def _divide_angles(causal_lm: Any, factors: Tensor) -> None:
    """Divide rotary angles by factors (rotary_dim / 2,), which a file has in place of a kind of scaling (Llama 3's)."""
    for module in causal_lm.modules():
        angles = getattr(module, "inv_freq", None)
        if isinstance(angles, Tensor) and angles.shape == factors.shape and module.rope_type == "default":
            module.register_buffer("inv_freq", angles / factors, persistent=False)
