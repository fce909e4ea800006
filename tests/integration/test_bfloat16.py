"""bfloat16 as it is served (packed, merged, whole layers, paged) is no further from float32 than transformers' own."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orcinus.config.engine_config import EngineConfig
from orcinus.config.settings import demo_model_path
from orcinus.engine.attention import choice
from orcinus.engine.core import Executor
from orcinus.engine.cpu.decoder_layers import NativeDecoder
from orcinus.engine.cpu.native_linear import NativeLinear
from orcinus.engine.cpu.packed_linear import PackedEmbedding, PackedLinear, native_kind
from orcinus.engine.frontend.llm import LLM
from orcinus.engine.kernels.library import load_library
from orcinus.engine.messages import EngineInfo
from orcinus.engine.models.loader import multiplies_bfloat16
from orcinus.engine.platform.device import cpu_has_bfloat16
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup import cpu_layout
from orcinus.engine.startup.build import build_executor

TEXTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital is Paris.",
    "<|im_start|>user\nCount from 3 to 9.<|im_end|>\n<|im_start|>assistant\n3, 4, 5, 6, 7, 8, 9",
    "The sea is wide and the boat is small. " * 12,
]
# Of the mean distance. Rounding in another order moves it by a few percent either way.
MARGIN = 1.15

pytestmark = pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU does not multiply bfloat16")
needs_kernels = pytest.mark.skipif(
    native_kind(load_library(), torch.bfloat16, None) is None,
    reason="our kernels do not multiply bfloat16 on this CPU",
)


def own_logprobs(model: Any, token_ids: list[int]) -> Tensor:
    """Of each token after the first, as transformers computes them."""
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids]), use_cache=False).logits[0].float()
    return torch.log_softmax(logits[:-1], dim=-1).gather(-1, torch.tensor(token_ids[1:]).unsqueeze(-1)).squeeze(-1)


@cache
def transformers_logprobs(dtype: torch.dtype, prompts: tuple[tuple[int, ...], ...]) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=dtype)
    return torch.cat([own_logprobs(model, list(ids)) for ids in prompts])


def served_logprobs(llm: LLM, prompts: list[list[int]]) -> Tensor:
    results = llm.generate(prompts, SamplingParams(max_tokens=0, prompt_logprobs=0))
    entries = [entry for result in results for entry in result.prompt_logprobs or []]
    return torch.tensor([entry.logprob for entry in entries if entry is not None])


def serve() -> tuple[LLM, set[type[nn.Module]]]:
    """The demo model in bfloat16, and the kinds of modules that it is made of."""
    models: list[Any] = []

    def build(config: EngineConfig) -> tuple[EngineInfo, Executor]:
        info, runner = build_executor(config)
        models.append(runner._model.causal_lm)
        return info, runner

    llm = LLM(dtype="bfloat16", max_num_batched_tokens=48, max_num_seqs=2, build=build)
    return llm, {type(module) for module in models[0].modules()}


def whole_layers(monkeypatch: pytest.MonkeyPatch) -> set[type[nn.Module]]:
    return {NativeDecoder, PackedEmbedding, NativeLinear}


def single_linears(monkeypatch: pytest.MonkeyPatch) -> set[type[nn.Module]]:
    monkeypatch.setattr(cpu_layout, "replace_layers", lambda *args: 0)
    return {PackedEmbedding, NativeLinear}


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> set[type[nn.Module]]:
    for module in (choice, cpu_layout):
        monkeypatch.setattr(module, "load_library", lambda: None)
    return {PackedLinear} if cpu_has_bfloat16() else set()


@pytest.mark.parametrize(
    "choose",
    [
        pytest.param(whole_layers, marks=needs_kernels),
        pytest.param(single_linears, marks=needs_kernels),
        without_kernels,
    ],
    ids=lambda choose: choose.__name__,
)
def test_served_bfloat16_is_as_near_to_float32_as_transformers_is(
    choose: Callable[[pytest.MonkeyPatch], set[type[nn.Module]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = choose(monkeypatch)
    llm, used = serve()
    assert used & {NativeDecoder, NativeLinear, PackedLinear, PackedEmbedding} == expected
    prompts = [llm.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    ids = tuple(tuple(prompt) for prompt in prompts)
    exact, own = (transformers_logprobs(dtype, ids) for dtype in (torch.float32, torch.bfloat16))
    own_distance = float((own - exact).abs().mean())
    distance = float((served_logprobs(llm, prompts) - exact).abs().mean())
    assert 0 < distance <= own_distance * MARGIN, (distance, own_distance)
