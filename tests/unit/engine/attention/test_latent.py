"""Latent attention: what a layer expands is not cached where two products give the same."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orcinus.engine.attention.cache import allocate_cache
from orcinus.engine.attention.interface import KVCacheSpec, LayerShape, batch_metadata
from orcinus.engine.attention.latent import LatentWeights, cache_latents, record_expansions
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.serving import PagedAttention, ProbingAttention, attention_function
from orcinus.engine.attention.step_context import StepContext, step_context
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.kernels.library import load_library

HEADS, KEY_DIM, ROTARY_DIM, VALUE_DIM, RANK = 3, 5, 4, 7, 16
NUM_TOKENS, BLOCK_SIZE = 11, 16
CPU = torch.device("cpu")


class Layer(nn.Module):
    """Expands as transformers' classes do, and attends."""

    is_causal = True

    def __init__(self, *, bias: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.kv_b_proj = nn.Linear(RANK, HEADS * (KEY_DIM + VALUE_DIM), bias=bias)
        self.gain = gain

    def expand_kv(self, latents: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.kv_b_proj(latents).view(1, -1, HEADS, KEY_DIM + VALUE_DIM).transpose(1, 2)
        keys, values = heads.split([KEY_DIM, VALUE_DIM], dim=-1)
        keys = torch.cat([keys, rotary.expand(-1, HEADS, -1, -1)], dim=-1)
        return keys, self.gain * values

    def forward(self, query: Tensor, latents: Tensor, rotary: Tensor) -> Tensor:
        keys, values = self.expand_kv(latents, rotary)
        return attention_function(self, query, keys, values, None, scaling=0.3)[0]


def inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((HEADS, NUM_TOKENS, KEY_DIM + ROTARY_DIM), (1, NUM_TOKENS, RANK), (1, NUM_TOKENS, ROTARY_DIM))
    query, latents, rotary = (torch.randn(1, *shape, generator=generator).to(dtype) for shape in shapes)
    return query, latents, rotary


def bound(layer: Layer, dtype: torch.dtype = torch.float32) -> tuple[LatentWeights | None, Tensor]:
    """Return what `cache_latents` makes of a run of the layer, and what the run gave."""
    with step_context(StepContext(ProbingAttention())), record_expansions(layer) as expansions:
        out = layer(*inputs(dtype=dtype))
    return cache_latents(layer, expansions[layer]), out


def backends() -> list[Any]:
    library = load_library()
    return [TorchBackend()] if library is None else [TorchBackend(), NativeBackend(library)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", backends(), ids=lambda backend: type(backend).__name__)
@torch.inference_mode()
def test_layer_attends_to_cached_latents_as_to_what_it_expanded(backend: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer = Layer().to(dtype)
    weights, expected = bound(layer, dtype)
    assert weights is not None
    assert weights.shape == LayerShape(1, RANK + ROTARY_DIM, RANK)
    kv: dict[nn.Module, KVCacheSpec] = {layer: KVCacheSpec(weights.shape, latents=weights)}
    paged = PagedAttention(backend, allocate_cache(backend, kv, [1], BLOCK_SIZE, dtype=dtype, device=CPU))
    chunks = []
    for span in ((0, 6), (6, 7), (7, NUM_TOKENS)):
        metadata = batch_metadata([span], np.zeros((1, 1), dtype=np.int32), BLOCK_SIZE, CPU)
        with step_context(StepContext(paged, (metadata,))):
            chunks.append(layer(*(tensor[:, :, slice(*span)] for tensor in inputs(dtype=dtype))))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(torch.cat(chunks, dim=1), expected, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
def test_weight_is_in_the_layer_once() -> None:
    layer = Layer()
    count = sum(weight.numel() for weight in layer.parameters())
    weights, _ = bound(layer)
    assert list(layer.children()) == [weights]
    assert sum(weight.numel() for weight in layer.parameters()) == count


@pytest.mark.parametrize("layer", [Layer(bias=True), Layer(gain=1.5)], ids=["bias", "gain"])
@torch.inference_mode()
def test_layer_that_expands_by_more_than_a_weight_stays_as_it_is(layer: Layer) -> None:
    weights, expected = bound(layer)
    assert weights is None
    with step_context(StepContext(ProbingAttention())):
        torch.testing.assert_close(layer(*inputs()), expected)
