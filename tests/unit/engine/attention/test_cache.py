"""The memory of the KV cache."""

import torch

from orcinus.engine.attention.cache import bytes_per_block
from orcinus.engine.attention.interface import LayerShape
from orcinus.engine.attention.torch_backend import TorchBackend
from tests.unit.engine.attention.cases import BLOCK, CPU


def test_cache_memory_starts_as_zeros_in_the_dtype_asked_for() -> None:
    layer = TorchBackend().allocate(LayerShape(3, 16, 8), 5, BLOCK, torch.bfloat16, CPU)
    assert layer.keys.shape == (5, BLOCK, 3, 16)
    assert layer.values.shape == (5, BLOCK, 3, 8)
    assert layer.keys.dtype == torch.bfloat16
    assert not bool(layer.keys.any())


def test_bytes_count_every_layer_with_its_own_shape() -> None:
    shapes = [LayerShape(2, 64, 64), LayerShape(1, 128, 96)]
    assert bytes_per_block(shapes, 16, torch.bfloat16) == (2 * 128 + 224) * 16 * 2
