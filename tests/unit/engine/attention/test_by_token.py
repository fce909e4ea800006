"""Attention in which a chunk changes nothing, to the last bit."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from orcinus.engine.attention.by_token import token_by_token
from orcinus.engine.attention.interface import AttentionBackend, AttentionSpec, LayerShape, batch_metadata
from tests.unit.engine.attention.cases import CPU, every_backend


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the mode leaves torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@every_backend
@pytest.mark.parametrize(
    "spec", [AttentionSpec(0.1), AttentionSpec(0.1, window=70), AttentionSpec(0.1, softcap=5.0)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_attends_alike_in_chunks_of_any_size(
    backend: AttentionBackend, spec: AttentionSpec, dtype: torch.dtype
) -> None:
    whole = attended(token_by_token(backend), spec, dtype, [600])
    torch.testing.assert_close(whole, attended(backend, spec, dtype, [600]), rtol=0.02, atol=0.02)
    for ends in ([1, 2, 63, 64, 65, 300, 600], [599, 600], [512, 513, 600]):
        assert torch.equal(attended(token_by_token(backend), spec, dtype, ends), whole)


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attended(backend: AttentionBackend, spec: AttentionSpec, dtype: torch.dtype, ends: list[int]) -> Tensor:
    """Return what a sequence's tokens get that is computed in chunks up to these positions, beside a shorter one."""
    shape, block_size = LayerShape(2, 48, 32), 16
    query, keys, values = (normal(600, heads, dim, seed=dim, dtype=dtype) for heads, dim in ((6, 48), (2, 48), (2, 32)))
    width = -(-600 // block_size)
    layer = backend.allocate(shape, 2 * width, block_size, dtype, CPU)
    tables = np.arange(2 * width, dtype=np.int32).reshape(2, width)
    parts = []
    for first, end in zip([0, *ends], ends, strict=False):
        spans = [(0, 1), (first, end)]
        rows = [torch.cat([tensor[:1] * len(ends), tensor[first:end]]) for tensor in (query, keys, values)]
        meta = batch_metadata(spans, tables, block_size, CPU)
        parts.append(backend.run(layer, *rows, spec=spec, meta=meta)[1:])
    return torch.cat(parts)
