"""The memory of the KV cache."""

import torch
from torch import nn

from orcinus.engine.attention.cache import allocate_cache, bytes_per_block
from orcinus.engine.attention.interface import KVCacheSpec, LayerShape
from orcinus.engine.attention.torch_backend import TorchBackend
from tests.unit.engine.attention.cases import BLOCK, CPU


def test_cache_memory_starts_as_zeros_in_the_dtype_asked_for() -> None:
    layer = TorchBackend().allocate(LayerShape(3, 16, 8), 5, BLOCK, torch.bfloat16, CPU)
    assert layer.keys.shape == (5, BLOCK, 3, 16)
    assert layer.values.shape == (5, BLOCK, 3, 8)
    assert layer.keys.dtype == torch.bfloat16
    assert not bool(layer.keys.any())


def test_bytes_count_every_layer_with_its_own_shape() -> None:
    specs = [KVCacheSpec(LayerShape(2, 64, 64)), KVCacheSpec(LayerShape(1, 128, 96))]
    assert bytes_per_block(specs, 16, torch.bfloat16) == (2 * 128 + 224) * 16 * 2
    scales = 2 * 2 * sum(spec.shape.num_kv_heads for spec in specs)  # of 2 bytes, for keys and for values
    assert bytes_per_block(specs, 16, torch.int8) == (2 * 128 + 224 + scales) * 16


def test_a_layer_that_has_its_keys_from_another_one_costs_nothing_and_gets_that_ones_cache() -> None:
    own, windowed, reader = (nn.Module() for _ in range(3))
    shape = LayerShape(2, 8, 6)
    specs = {
        own: KVCacheSpec(shape),
        windowed: KVCacheSpec(shape, group=1),
        reader: KVCacheSpec(shape, group=1, source=windowed),
    }
    assert bytes_per_block(specs.values(), 16, torch.float32) == 2 * bytes_per_block([specs[own]], 16, torch.float32)
    layers = allocate_cache(TorchBackend(), specs, [5, 3], BLOCK, dtype=torch.float32, device=CPU)
    assert [len(layers[module].cache.keys) for module in (own, windowed)] == [5, 3]
    assert layers[reader].cache is layers[windowed].cache
    assert [layers[module].only_reads for module in (own, windowed, reader)] == [False, False, True]
    assert [layers[module].group for module in (own, windowed, reader)] == [0, 1, 1]
