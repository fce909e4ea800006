"""The truth test on a CUDA device, with steps replayed and launched, and its attention against the gathering backend.

None of this has run yet: it waits for a machine with a GPU (`make gpu-check`).
"""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from orcinus.engine.attention.choice import choose_backend
from orcinus.engine.attention.flash_backend import FlashBackend
from orcinus.engine.attention.interface import AttentionSpec, LayerShape, batch_metadata
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.runner.cuda_graphs import recorded_sizes
from orcinus.engine.startup.build import build_executor
from tests.integration.tiny_models import FAMILIES, build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    core_with_few_blocks,
    greedy_cases,
    sampled_cases,
    serve,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]

NUM_REQUESTS = 20


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: build_model(family, tmp_path_factory.mktemp(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_greedy_output_on_the_gpu_equals_generate_alone(family: str, model_of: Callable[[str], Path]) -> None:
    """In float32, so not through FlashAttention. The reference runs on the CPU."""
    rng = random.Random(family)
    cases = greedy_cases(model_of(family), rng, NUM_REQUESTS)
    config = engine_config(model_of(family), device="cuda", max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    info, runner = build_executor(config)
    for name in ("replayed", "launched"):
        run = serve(core_with_few_blocks((info, runner)), cases, rng, name)
        assert [outcome.token_ids for outcome in run.outcomes] == [case.expected for case in cases]
        assert run.num_preemptions > 0
        runner.graphs = None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_oss"])
def test_steps_of_single_tokens_are_replayed(family: str, dtype: str, model_of: Callable[[str], Path]) -> None:
    pytest.importorskip("triton")
    config = engine_config(model_of(family), device="cuda", dtype=dtype, block_size=None, max_num_batched_tokens=None)
    info, runner = build_executor(config)
    rng = random.Random(3)
    serve(core_with_few_blocks((info, runner), info.num_kv_blocks), sampled_cases(rng, 8), rng)
    assert runner.graphs is not None
    assert runner.graphs.sizes[::-1] == recorded_sizes(info.max_num_seqs)


def test_seeded_sampling_on_the_gpu_does_not_depend_on_what_shares_the_batch(
    model_of: Callable[[str], Path],
) -> None:
    rng = random.Random(1)
    config = engine_config(model_of("llama"), device="cuda", max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    executor = build_executor(config)
    cases = sampled_cases(rng, 12)
    together = serve(core_with_few_blocks(executor), cases, rng, "together")
    for i, (case, outcome) in enumerate(zip(cases, together.outcomes, strict=True)):
        alone = serve(core_with_few_blocks(executor), [case], rng, f"alone{i} ")
        assert outcome.token_ids == alone.outcomes[0].token_ids


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("heads", [(16, 8), (8, 8), (16, 1)])
@pytest.mark.parametrize("name", ["flash-varlen", "triton"])
def test_attention_in_place_is_that_of_the_gathering_backend(
    name: str, heads: tuple[int, int], window: int | None
) -> None:
    device = torch.device("cuda")
    backend = choose_backend(device, torch.bfloat16)
    if isinstance(backend, FlashBackend) and name == "triton":
        backend = backend.fallback
    if not isinstance(backend, TorchBackend) or backend.name != name:
        pytest.skip(f"this torch or this GPU has no {name}")
    num_heads, num_kv_heads = heads
    dim, block_size = 128, 256
    spans = [(699, 700), (0, 1), (300, 301), (512, 900), (0, 257)]
    tables = np.random.default_rng(0).permutation(20).astype(np.int32).reshape(5, 4)
    meta = batch_metadata(spans, tables, block_size, device)
    layer = backend.allocate(LayerShape(num_kv_heads, dim, dim), 20, block_size, torch.bfloat16, device)
    generator = torch.Generator(device).manual_seed(0)
    for cached in (layer.keys, layer.values):
        cached.normal_(generator=generator)
    query = torch.randn(meta.query_start[-1], num_heads, dim, dtype=torch.bfloat16, device=device, generator=generator)
    spec = AttentionSpec(dim**-0.5, window)
    expected = TorchBackend().attend(layer, query, spec, meta)
    torch.testing.assert_close(backend.attend(layer, query, spec, meta), expected, rtol=2e-2, atol=2e-2)


def test_bfloat16_model_loads_and_serves_with_automatic_memory(model_of: Callable[[str], Path]) -> None:
    """`build_executor` itself compares chunks with the whole, through FlashAttention where there is one."""
    rng = random.Random(2)
    config = engine_config(
        model_of("qwen3"), device="cuda", dtype="bfloat16", block_size=None, max_num_batched_tokens=None
    )
    info, runner = build_executor(config)
    assert (info.device, info.dtype) == ("cuda", "bfloat16")
    core = core_with_few_blocks((info, runner), min(info.num_kv_blocks, 4))
    run = serve(core, sampled_cases(rng, 12), rng)
    assert all(outcome.error is None for outcome in run.outcomes)
    assert runner.device_monitor is not None
    utilization, used, total = runner.device_monitor.sample()
    assert utilization is None or 0 <= utilization <= 1
    assert used is None or total is None or used <= total
