"""Arrays as tensors: shared on a CPU, one piece of bytes for every other device."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orcinus.engine.platform.device_copy import pack, to_device, unpack

ARRAYS: list[NDArray[Any]] = [
    np.arange(5, dtype=np.int64),
    np.arange(6, dtype=np.int32).reshape(2, 3) - 3,
    np.zeros((0, 4), dtype=np.int32),
    np.array([0.5, -1.0, 2.0], dtype=np.float32),
    np.arange(8, dtype=np.int64)[::2],
]


def test_what_was_packed_comes_out_as_it_was() -> None:
    for array, tensor in zip(ARRAYS, unpack(pack(ARRAYS), ARRAYS), strict=True):
        assert tensor.shape == array.shape
        assert tensor.numpy().dtype == array.dtype
        assert np.array_equal(tensor.numpy(), array)


def test_packed_arrays_are_aligned_for_kernels() -> None:
    packed = pack(ARRAYS)
    assert {(tensor.data_ptr() - packed.data_ptr()) % 16 for tensor in unpack(packed, ARRAYS)} == {0}


@pytest.mark.parametrize("index", range(len(ARRAYS)))
def test_on_a_cpu_nothing_is_copied(index: int) -> None:
    (tensor,) = to_device([ARRAYS[index]], torch.device("cpu"))
    assert tensor.data_ptr() == ARRAYS[index].ctypes.data or tensor.numel() == 0
