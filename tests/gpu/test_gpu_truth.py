"""The truth test on a CUDA device, with steps replayed and launched, its attention, its memory and its faults.

None of this has run yet: it waits for a machine with a GPU (`make gpu-check`).
"""

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from orcinus.engine.attention.choice import LayerKind, choose_backend
from orcinus.engine.attention.flash_backend import paged_varlen_attn
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache, LayerShape, batch_metadata
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.models.loader import load_causal_lm
from orcinus.engine.runner.cuda_graphs import CudaRecorder, recorded_sizes
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor
from tests.integration.tiny_models import FAMILIES, build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Case,
    core_with_few_blocks,
    greedy_cases,
    sampled_cases,
    serve,
    serve_together_and_alone,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]

NUM_REQUESTS = 20
CUDA = torch.device("cuda")


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
    serve_together_and_alone(executor, cases, rng)


LAYERS = {
    "plain": LayerKind(16, LayerShape(8, 128, 128), AttentionSpec(0.09)),
    "no groups": LayerKind(8, LayerShape(8, 128, 128), AttentionSpec(0.09)),
    "one KV head": LayerKind(16, LayerShape(1, 64, 64), AttentionSpec(0.125)),
    "window": LayerKind(16, LayerShape(8, 128, 128), AttentionSpec(0.09, window=100)),
    "narrow": LayerKind(8, LayerShape(2, 80, 80), AttentionSpec(0.11)),
    "wide": LayerKind(8, LayerShape(4, 256, 256), AttentionSpec(0.06)),
    "softcap": LayerKind(8, LayerShape(4, 256, 256), AttentionSpec(0.06, window=100, softcap=50.0)),
    "sinks": LayerKind(64, LayerShape(8, 64, 64), AttentionSpec(0.125, window=128, sinks=torch.ones(64))),
    "wider": LayerKind(8, LayerShape(1, 512, 512), AttentionSpec(0.04)),
    "uneven": LayerKind(16, LayerShape(16, 192, 128), AttentionSpec(0.07)),
}
OF_FLASH = {"plain", "no groups", "one KV head", "window", "narrow", "wide"}


def backend_and_layer(name: str, kind: str, dtype: torch.dtype) -> tuple[TorchBackend, LayerKind, int]:
    """The backend of this name and the size of its blocks; the test is skipped only where torch or the GPU lacks it."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("nothing reads the cache in place on GPUs older than Ampere")
    if name == "flash-varlen" and (paged_varlen_attn() is None or kind not in OF_FLASH or dtype is torch.float32):
        pytest.skip("FlashAttention does not serve this")
    layer, block_size = LAYERS[kind], 256 if name == "flash-varlen" else 16
    if layer.spec.sinks is not None:
        layer = replace(layer, spec=replace(layer.spec, sinks=layer.spec.sinks.to(CUDA)))
    backend = choose_backend(CUDA, dtype, [layer], block_size)
    assert backend.name == name  # what start-up tries out works
    assert isinstance(backend, TorchBackend)
    return backend, layer, block_size


def filled_cache(backend: TorchBackend, layer: LayerKind, block_size: int, dtype: torch.dtype) -> LayerCache:
    cache = backend.allocate(layer.shape, NUM_TOKENS * 5 // block_size, block_size, dtype, CUDA)
    generator = torch.Generator(CUDA).manual_seed(0)
    for cached in (cache.keys, cache.values):
        cached.normal_(generator=generator)
    return cache


def metadata(spans: list[tuple[int, int]], block_size: int) -> AttentionMetadata:
    width = NUM_TOKENS // block_size
    tables = np.random.default_rng(0).permutation(5 * width).astype(np.int32).reshape(5, width)
    return batch_metadata(spans, tables[: len(spans)], block_size, CUDA)


def exact(cache: LayerCache, query: torch.Tensor, layer: LayerKind, meta: AttentionMetadata) -> torch.Tensor:
    doubled = LayerCache(cache.keys.double(), cache.values.double())
    return TorchBackend().attend(doubled, query.double(), layer.spec, meta)


NUM_TOKENS = 1024  # that a sequence has room for
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SPANS = [
    [(699, 700), (0, 1), (300, 301), (512, 900), (0, 257)],
    [(699, 700), (0, 1), (300, 301), (255, 256), (256, 257)],
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ["flash-varlen", "triton"])
def test_attention_in_place_is_what_its_definition_says(name: str, kind: str, dtype: torch.dtype) -> None:
    backend, layer, block_size = backend_and_layer(name, kind, dtype)
    cache = filled_cache(backend, layer, block_size, dtype)
    for spans in SPANS:
        meta = metadata(spans, block_size)
        query = torch.randn(meta.query_start[-1], layer.num_heads, layer.shape.key_dim, dtype=dtype, device=CUDA)
        expected = exact(cache, query, layer, meta)
        got = backend.attend(cache, query, layer.spec, meta).double()
        assert float((got - expected).abs().max() / expected.abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ["flash-varlen", "triton"])
def test_recorded_attention_serves_steps_of_other_lengths(name: str, kind: str) -> None:
    """What a recording is told of lengths is the most that there can be; what it reads is the step's own."""
    dtype = torch.bfloat16
    backend, layer, block_size = backend_and_layer(name, kind, dtype)
    cache = filled_cache(backend, layer, block_size, dtype)
    meta = metadata([(0, 1)] * 5, block_size)
    recorded = replace(meta, seq_lens=[NUM_TOKENS] * 5, max_seq_len=NUM_TOKENS, is_recorded=True)
    query = torch.randn(5, layer.num_heads, layer.shape.key_dim, dtype=dtype, device=CUDA)
    out = torch.empty(5, layer.num_heads, layer.shape.value_dim, dtype=dtype, device=CUDA)

    def attend() -> None:
        out.copy_(backend.attend(cache, query, layer.spec, recorded))

    replay = CudaRecorder()(attend)
    for lengths in ([700, 1, 301, 256, 257], [1, 1, 1, 1, 1], [1024, 512, 3, 100, 101]):
        step = metadata([(length - 1, length) for length in lengths], block_size)
        recorded.seq_lens_tensor.copy_(step.seq_lens_tensor)
        query.normal_()
        replay()
        expected = exact(cache, query, layer, step)
        assert float((out.double() - expected).abs().max() / expected.abs().max()) < TOLERANCE[dtype]


BROKEN = """
import torch
from orcinus.engine.platform.device import is_broken

device = torch.device("cuda", torch.cuda.current_device())
numbers = torch.zeros(4, device=device)
assert not is_broken(device)
try:
    numbers[torch.tensor([10**6], device=device)].cpu()
except RuntimeError as error:
    print("raised", type(error).__name__)
assert is_broken(device), "a fault in a kernel goes unseen"
"""


def test_a_device_that_a_kernel_has_broken_is_known_to_be() -> None:
    """In a process of its own, which has no device from then on."""
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_slot_can_run_with_everything_on_in_the_memory_that_was_left(model_of: Callable[[str], Path]) -> None:
    """The KV cache takes all but what the largest step, sampling and recordings were found to need."""
    config = engine_config(
        model_of("llama"),
        device="cuda",
        dtype="bfloat16",
        block_size=None,
        max_num_batched_tokens=None,
        max_num_seqs=256,
    )
    info, runner = build_executor(config)
    assert runner.graphs is not None
    assert runner.graphs.sizes[::-1] == recorded_sizes(256)
    sampling = SamplingParams(temperature=1.0, top_p=0.9, top_k=50, logprobs=20, max_tokens=8, ignore_eos=True)
    cases = [Case([7] * 100, sampling, []) for _ in range(300)]
    run = serve(core_with_few_blocks((info, runner), info.num_kv_blocks), cases, random.Random(0))
    assert [outcome.error for outcome in run.outcomes] == [None] * 300
    assert {len(outcome.token_ids) for outcome in run.outcomes} == {8}


def test_weights_of_several_files_arrive_on_the_device(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model_of("llama")).save_pretrained(tmp_path, max_shard_size="100KB")
    loaded = load_causal_lm(engine_config(tmp_path), CUDA)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert not [module for module in loaded.modules() if hasattr(module, "_hf_hook")]


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
