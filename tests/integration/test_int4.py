"""Weights in 4 bits: near to the weights that they stand for, and the same tokens whoever shares the batch."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orcinus.engine.cpu.decoder_layers import NativeDecoder
from orcinus.engine.cpu.grouped_weight import GroupedWeight
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.cpu.packed_linear import PackedEmbedding
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.frontend.llm import LLM
from orcinus.engine.kernels.library import load_library, use_kernels
from orcinus.engine.messages import EngineInfo
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup import cpu_layout
from orcinus.engine.startup.build import build_executor
from tests.integration.test_bfloat16 import TEXTS, served_logprobs
from tests.integration.test_int8 import greedy_cases
from tests.integration.tiny_models import build_model, engine_config
from tests.integration.truth import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Case,
    core_with_few_blocks,
    sampled_cases,
    serve,
    serve_together_and_alone,
)

LIBRARY = load_library()
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
HAS_LAYERS = LIBRARY is not None and LIBRARY.has_decoder

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="there is no library here")
Executor = tuple[EngineInfo, ModelRunner]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: build_model(family, tmp_path_factory.mktemp(family), **SHAPE))


@pytest.fixture(scope="module")
def executor_of(model_of: Callable[[str], Path]) -> Callable[[str, str], Executor]:
    """Loaded once for a family and what the kernels may use."""

    def load(family: str, kernels: str) -> Executor:
        config = engine_config(
            model_of(family), dtype="bfloat16", quantization="int4", max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE
        )
        use_kernels(kernels)
        try:
            return build_executor(config)
        finally:
            use_kernels("amx")

    return cache(load)


def modules_of(executor: Executor) -> set[type]:
    return {type(module) for module in executor[1]._model.causal_lm.modules()}


ARMS = [("llama", "amx"), ("qwen3", "amx"), ("gemma2", "amx"), ("llama", "avx2")]


@pytest.mark.parametrize(("family", "kernels"), ARMS)
def test_tokens_do_not_depend_on_what_shares_the_batch(
    family: str, kernels: str, executor_of: Callable[[str, str], Executor]
) -> None:
    """Nor on chunks, on what the prefix cache had, or on having been preempted."""
    executor = executor_of(family, kernels)
    rng = random.Random(family)
    cases = greedy_cases(rng, 12) + sampled_cases(rng, 8)
    together = serve_together_and_alone(executor, cases, rng)
    assert len({token for outcome in together.outcomes for token in outcome.token_ids}) > 40


@pytest.mark.skipif(not HAS_LAYERS, reason="whole layers need AVX2")
def test_whole_layers_are_native_where_there_is_avx2_alone(executor_of: Callable[[str, str], Executor]) -> None:
    assert NativeDecoder in modules_of(executor_of("llama", "amx"))
    assert NativeDecoder in modules_of(executor_of("llama", "avx2"))
    assert NativeDecoder not in modules_of(executor_of("llama", "generic"))
    assert NativeLinear in modules_of(executor_of("llama", "generic"))


def test_head_and_embedding_that_share_a_weight_share_it_in_8_bits(tmp_path: Path) -> None:
    config = engine_config(
        build_model("llama", tmp_path, **SHAPE, tie_word_embeddings=True), dtype="bfloat16", quantization="int4"
    )
    model: Any = build_executor(config)[1]._model.causal_lm
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(embedding, PackedEmbedding)
    assert LIBRARY is not None
    if LIBRARY.has_plain_linear:
        assert head.packed.kind == "int8"
    else:
        assert isinstance(head.packed, GroupedWeight)
        assert head.packed.form.bits == 8
    assert embedding.packed is head.packed
    ids = torch.tensor([[0, 5], [319, 5]])
    assert torch.equal(embedding(ids), head.weight[ids])
    assert not any(isinstance(module, nn.Embedding) for module in model.modules())


def test_weights_take_little_more_than_a_quarter_of_what_they_take_in_bfloat16(
    model_of: Callable[[str], Path], executor_of: Callable[[str, str], Executor]
) -> None:
    """Of layers; the head takes 8 bits or 8.5, and the embedding what it took: 320 rows of 64 each."""
    assert LIBRARY is not None
    head_bits = 8 if LIBRARY.has_plain_linear else 8.5
    plain = build_executor(engine_config(model_of("llama"), dtype="bfloat16"))[0].weight_bytes
    rows = 320 * 64
    layers, quantized = (
        plain - 2 * rows * 2,
        executor_of("llama", "amx")[0].weight_bytes - rows * 2 - rows * head_bits / 8,
    )
    assert 4.4 / 16 < quantized / layers < 4.8 / 16


def test_demo_model_in_4_bits_knows_what_it_knows() -> None:
    plain, quantized = (
        LLM(dtype="bfloat16", quantization=quantization, max_num_batched_tokens=48, max_num_seqs=2)
        for quantization in (None, "int4")
    )
    token_ids = [plain.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    off = (served_logprobs(quantized, token_ids) - served_logprobs(plain, token_ids)).abs()
    assert 0 < float(off.mean()) < 0.6
    (answer,) = quantized.chat(
        [{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0, max_tokens=16)
    )
    assert "Paris" in answer.outputs[0].text


@torch.inference_mode()
def test_checkpoint_in_float32_can_be_quantized_too(model_of: Callable[[str], Path]) -> None:
    config = engine_config(model_of("llama"), quantization="int4", max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    executor = build_executor(config)
    assert executor[0].dtype == "float32"
    assert NativeLinear in modules_of(executor)
    case = Case([5, 6, 7], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True), [])
    outcome = serve(core_with_few_blocks(executor), [case], random.Random(0)).outcomes[0]
    assert outcome.error is None
    assert len(outcome.token_ids) == 5


def test_without_kernels_there_are_no_4_bits_and_it_says_so(
    model_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_layout, "load_library", lambda: None)
    with pytest.raises(ModelLoadError, match="quantization=int4 needs the native kernels"):
        build_executor(engine_config(model_of("llama"), quantization="int4"))
