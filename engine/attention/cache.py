"""The memory of the KV cache: what it takes, its allocation, and making blocks safe for the next sequence.

How many blocks there are is decided elsewhere; how a block is laid out is the backend's matter.
"""

import math

import torch
from torch import Tensor, nn

from orcinus.engine.attention.interface import AttentionBackend, LayerCache, LayerShape
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.platform.memory import zeroed_bytes


def bytes_per_block(shapes: list[LayerShape], block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that a block takes in all layers."""
    return sum(shape.elements_per_token for shape in shapes) * block_size * dtype.itemsize


def allocate_cache(
    backend: AttentionBackend,
    shapes: dict[nn.Module, LayerShape],
    num_blocks: int,
    block_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[nn.Module, LayerCache]:
    """Return one cache per attention layer. Raises `ModelLoadError` if the memory is not there after all."""
    try:
        return {
            module: backend.allocate(shape, num_blocks, block_size, dtype, device) for module, shape in shapes.items()
        }
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        num_bytes = num_blocks * bytes_per_block(list(shapes.values()), block_size, dtype)
        raise ModelLoadError(f"cannot allocate {num_bytes / 2**20:.1f} MiB of KV cache: {error}") from error


def allocate_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros, because a masked slot still meets a weight of 0, and 0 * NaN is NaN.

    On a CPU the pages come from the kernel as zeros when they are touched, which torch.zeros does at once.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return zeroed_bytes(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def scrub_blocks(layer: LayerCache, block_ids: Tensor) -> None:
    """Make the blocks finite: NaN and infinities become 0."""
    for cached in (layer.keys, layer.values):
        cached[block_ids] = torch.nan_to_num(cached[block_ids], 0.0, 0.0, 0.0)
