"""Weights of a GGUF file: in their blocks where our kernels multiply them, else dequantized one after the other.

transformers knows what llama.cpp calls a weight and how it has laid it out; gguf knows the blocks. transformers' own
loading goes through a copy of all weights, and through blocks that stay quantized where it finds kernels for them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orcinus.engine.kernels.library import Library
from orcinus.engine.models.gguf_linears import BlockModules
from orcinus.engine.platform.memory import MappedFiles

logger = logging.getLogger(__name__)


def read_gguf_weights(
    file: Path, causal_lm: Any, dtype: torch.dtype, library: Library | None = None
) -> dict[str, Tensor]:
    """Return the weights that the file has of the model, by the model's names.

    None at all if transformers reads files of this architecture in another way. With a library, quantized weights of
    linear layers and of the embedding are packed for it, in modules that take the place of the model's own, and are
    not among those that are returned.
    """
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    try:
        processor, names = _layout(architecture, causal_lm)
    except (ImportError, NotImplementedError) as error:
        logger.info("a GGUF file of %s is left to transformers: %s", architecture, error)
        return {}
    weights: dict[str, Tensor] = {}
    mapped = MappedFiles()
    stored = {names[tensor.name] for tensor in reader.tensors if tensor.name in names}
    in_blocks = None if library is None else BlockModules(causal_lm, library, stored)
    for tensor in reader.tensors:
        if in_blocks is not None and in_blocks.take(tensor, names.get(tensor.name, ""), processor, names):
            continue
        values, name, _ = processor.process(
            weights=dequantize(tensor.data, tensor.tensor_type),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters={"tensors": weights},  # where experts are put together
        )
        if name in names:
            weights[names[name]] = _tensor(values, dtype)
        _convert_new(weights, dtype)
        mapped.release_bytes(tensor.data.ctypes.data, tensor.data.nbytes)
    if in_blocks is not None:
        in_blocks.put_in(weights, dtype)
    return weights


def _layout(architecture: str, causal_lm: Any) -> tuple[Any, dict[str, str]]:
    """Return what undoes llama.cpp's layout of a tensor, and the model's name for each of the file's."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    make: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = make(config=causal_lm.config.to_dict())
    with _name_map_made_once():
        return processor, get_gguf_hf_weights_map(causal_lm, processor)


@contextmanager
def _name_map_made_once() -> Iterator[None]:
    """Keep gguf's table of names, which transformers asks for once for every module: 40 ms each time."""
    import gguf

    make = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(make)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = make


def _tensor(values: Any, dtype: torch.dtype) -> Tensor:
    writable = np.require(values, requirements="W")  # of what is not, as of a mapped file, torch makes a warning
    return torch.empty(values.shape, dtype=dtype).copy_(torch.from_numpy(writable))


def _convert_new(weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Convert what the processor itself has put there, in float32."""
    for name, weight in weights.items():
        if weight.dtype != dtype:
            weights[name] = weight.to(dtype)
