"""The memory of the KV cache: what it takes, its allocation, and making blocks safe for the next sequence.

How many blocks there are is decided elsewhere; how a block is laid out is the backend's matter.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from orcinus.engine.attention.interface import AttentionBackend, KVCacheSpec, LayerCache, PagedLayer
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.platform.memory import zeroed_bytes

INT8_SCALE_BYTES = 2  # of a token's keys in one head, and of its values, where they are stored in 8 bits


def bytes_per_block(specs: Iterable[KVCacheSpec], block_size: int, dtype: torch.dtype) -> int:
    """Return what a block costs in all of these layers, of which some may store nothing.

    `dtype` is what is stored; numbers of `torch.int8` have scales beside them.
    """
    shapes = [spec.shape for spec in specs if spec.source is None]
    scales = sum(2 * INT8_SCALE_BYTES * shape.num_kv_heads for shape in shapes) if dtype is torch.int8 else 0
    elements = sum(shape.elements_per_token for shape in shapes)
    return (elements * dtype.itemsize + scales) * block_size


def stored_dtype(backend: AttentionBackend, dtype: torch.dtype) -> torch.dtype:
    """Return what keys and values of a dtype are stored in by the backend."""
    return torch.int8 if backend.stores_int8 else dtype


def allocate_cache(
    backend: AttentionBackend,
    specs: Mapping[nn.Module, KVCacheSpec],
    num_blocks: Sequence[int],
    block_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[nn.Module, PagedLayer]:
    """Allocate `num_blocks[group]` blocks for each layer that stores keys and values; the others get their source's.

    Raises `ModelLoadError` when the memory is not there after all.
    """
    layers: dict[nn.Module, PagedLayer] = {}
    try:
        for module, spec in specs.items():
            if spec.source is not None:
                layers[module] = replace(layers[spec.source], only_reads=True)
            else:
                cache = backend.allocate(spec.shape, num_blocks[spec.group], block_size, dtype, device)
                layers[module] = PagedLayer(cache, spec.group, latents=spec.latents)
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        stored = stored_dtype(backend, dtype)
        num_bytes = sum(num_blocks[spec.group] * bytes_per_block([spec], block_size, stored) for spec in specs.values())
        raise ModelLoadError(f"cannot allocate {num_bytes / 2**20:.1f} MiB of KV cache: {error}") from error
    return layers


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
