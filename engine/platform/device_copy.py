"""Moves a step's small arrays to the device and back, without making the host wait before it needs them.

On a CPU nothing is copied. Knows nothing of what the arrays mean. The CUDA side has not yet run on a GPU.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Return the arrays as tensors on the device; on a CPU they share their memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    packed = pack(arrays).pin_memory()  # torch keeps pinned memory from others until the copy is done
    return unpack(packed.to(device, non_blocking=True), arrays)


def to_host(*tensors: Tensor) -> Callable[[], list[Any]]:
    """Begin to copy; return a function that waits for the copies and returns each tensor's `tolist()`.

    It does not wait for what is computed on the device after this call.
    """
    if tensors[0].device.type == "cpu":
        return lambda: [tensor.tolist() for tensor in tensors]
    copies = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> list[Any]:
        copied.synchronize()
        return [copy.tolist() for copy in copies]

    return wait


def pack(arrays: Sequence[NDArray[Any]]) -> Tensor:
    """Return one piece of bytes that holds all arrays, each aligned."""
    packed = np.zeros(sum(_room(array) for array in arrays), dtype=np.uint8)
    offset = 0
    for array in arrays:
        packed[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        offset += _room(array)
    return torch.from_numpy(packed)


def unpack(packed: Tensor, like: Sequence[NDArray[Any]]) -> list[Tensor]:
    """Return views of what `pack` made of arrays of these shapes and types."""
    tensors = []
    offset = 0
    for array in like:
        dtype = torch.from_numpy(array[:0]).dtype
        tensors.append(packed[offset : offset + array.nbytes].view(dtype).view(array.shape))
        offset += _room(array)
    return tensors


def _room(array: NDArray[Any]) -> int:
    return math.ceil(array.nbytes / _ALIGNMENT) * _ALIGNMENT
