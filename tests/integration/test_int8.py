"""Weights in 8 bits: near to bfloat16, the same tokens whoever shares the batch, and all that is served works."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orcinus.engine.cpu.decoder_layers import NativeDecoder
from orcinus.engine.cpu.int8_linear import Int8Linear
from orcinus.engine.cpu.native_linear import NativeLinear, can_multiply
from orcinus.engine.frontend.llm import LLM
from orcinus.engine.kernels.library import load_library
from orcinus.engine.messages import EngineInfo
from orcinus.engine.models.loader import multiplies_bfloat16
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup import cpu_layout
from orcinus.engine.startup.build import build_executor
from tests.integration.test_bfloat16 import TEXTS, served_logprobs
from tests.integration.test_embeddings import embed
from tests.integration.tiny_models import build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Case,
    core_with_few_blocks,
    prompts,
    random_tokens,
    sampled_cases,
    serve,
    serve_together_and_alone,
)

LIBRARY = load_library()
HAS_KERNELS = LIBRARY is not None and can_multiply(LIBRARY, "int8")
needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="our kernels do not multiply int8 on this CPU")
# Shapes that our kernels take whole layers of.
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
DTYPE = "bfloat16" if multiplies_bfloat16() else "float32"

Executor = tuple[EngineInfo, ModelRunner]
# Family, and whether our kernels multiply; they attend in any case.
ARMS = [
    pytest.param("llama", True, marks=needs_kernels),
    pytest.param("qwen3", True, marks=needs_kernels),
    pytest.param("gemma2", True, marks=needs_kernels),
    pytest.param("llama", False, marks=pytest.mark.skipif(LIBRARY is None, reason="torch attends in bfloat16 here")),
]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: build_model(family, tmp_path_factory.mktemp(family), **SHAPE))


@pytest.fixture(scope="module")
def executor_of(model_of: Callable[[str], Path]) -> Callable[[str, bool], Executor]:
    """Loaded once each. The scheduler is told of few blocks, so that four requests do not fit for long."""

    def load(family: str, has_kernels: bool) -> Executor:
        config = engine_config(
            model_of(family), dtype=DTYPE, quantization="int8", max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE
        )
        with pytest.MonkeyPatch.context() as patch:
            if not has_kernels:
                patch.setattr(cpu_layout, "load_library", lambda: None)
            return build_executor(config)

    return cache(load)


def modules_of(executor: Executor) -> set[type]:
    return {type(module) for module in executor[1]._model.causal_lm.modules()}


@needs_kernels
@pytest.mark.skipif(DTYPE != "bfloat16", reason="whole layers are for bfloat16")
def test_our_kernels_multiply_where_the_cpu_has_them(executor_of: Callable[[str, bool], Executor]) -> None:
    assert {NativeDecoder, NativeLinear} <= modules_of(executor_of("llama", True))
    assert NativeLinear in modules_of(executor_of("gemma2", True))
    assert Int8Linear in modules_of(executor_of("llama", False))


def greedy_cases(rng: random.Random, count: int) -> list[Case]:
    sampling = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    return [Case(prompt, sampling, []) for prompt, _ in zip(prompts(rng), range(count), strict=False)]


@pytest.mark.parametrize(("family", "has_kernels"), ARMS)
def test_tokens_do_not_depend_on_what_shares_the_batch(
    family: str, has_kernels: bool, executor_of: Callable[[str, bool], Executor]
) -> None:
    """Nor on chunks, on what the prefix cache had, or on having been preempted."""
    executor = executor_of(family, has_kernels)
    rng = random.Random(family)
    cases = greedy_cases(rng, 18) + sampled_cases(rng, 7)
    together = serve_together_and_alone(executor, cases, rng)
    assert together.num_preemptions > 0
    assert together.num_cached_tokens > 0
    assert len({token for outcome in together.outcomes for token in outcome.token_ids}) > 60


@pytest.mark.parametrize(("family", "has_kernels"), ARMS)
def test_embeddings_are_near_to_those_of_float32(
    family: str, has_kernels: bool, model_of: Callable[[str], Path], executor_of: Callable[[str, bool], Executor]
) -> None:
    tokens = [random_tokens(random.Random(i), length) for i, length in enumerate((1, 9, 30))]
    exact = build_executor(engine_config(model_of(family), max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE))
    got, wanted = (
        embed(core_with_few_blocks(executor, 48), "mean", tokens).vectors
        for executor in (executor_of(family, has_kernels), exact)
    )
    for a, b in zip(got, wanted, strict=True):
        assert 0.97 < float(np.dot(a, b)) < 1 - 1e-6


def test_weights_take_half_of_what_they_take_in_bfloat16(
    model_of: Callable[[str], Path], executor_of: Callable[[str, bool], Executor]
) -> None:
    """All but the embedding, which has 320 rows of 64 and is only looked up in."""
    plain = build_executor(engine_config(model_of("llama"), dtype="bfloat16"))[0].weight_bytes
    embedding = 320 * 64 * (2 if DTYPE == "bfloat16" else 4)
    quantized = executor_of("llama", False)[0].weight_bytes
    assert quantized - embedding < 0.55 * (plain - 320 * 64 * 2)


@pytest.mark.skipif(DTYPE != "bfloat16", reason="this CPU does not multiply bfloat16")
def test_demo_model_in_8_bits_says_nearly_what_it_says_in_bfloat16() -> None:
    plain, quantized = (
        LLM(dtype="bfloat16", quantization=quantization, max_num_batched_tokens=48, max_num_seqs=2)
        for quantization in (None, "int8")
    )
    token_ids = [plain.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    off = (served_logprobs(quantized, token_ids) - served_logprobs(plain, token_ids)).abs()
    assert 0 < float(off.mean()) < 0.1
    assert float(off.max()) < 1.5
    (answer,) = quantized.chat(
        [{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0, max_tokens=16)
    )
    assert "Paris" in answer.outputs[0].text


@torch.inference_mode()
def test_checkpoint_in_float32_can_be_quantized_too(model_of: Callable[[str], Path]) -> None:
    config = engine_config(model_of("llama"), quantization="int8", max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    executor = build_executor(config)
    assert executor[0].dtype == "float32"
    assert (NativeLinear if HAS_KERNELS else Int8Linear) in modules_of(executor)
    case = Case([5, 6, 7], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True), [])
    outcome = serve(core_with_few_blocks(executor), [case], random.Random(0)).outcomes[0]
    assert outcome.error is None
    assert len(outcome.token_ids) == 5
