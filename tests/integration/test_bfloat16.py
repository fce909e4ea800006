"""bfloat16 as it is served (packed, merged, from a paged cache) is no further from float32 than transformers' own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from config.settings import demo_model_path
from engine.device import cpu_has_bfloat16
from engine.llm import LLM
from engine.sampling_params import SamplingParams

TEXTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital is Paris.",
    "<|im_start|>user\nCount from 3 to 9.<|im_end|>\n<|im_start|>assistant\n3, 4, 5, 6, 7, 8, 9",
    "The sea is wide and the boat is small. " * 12,
]
# Of the mean distance. Rounding in another order moves it by a few percent either way.
MARGIN = 1.15


def own_logprobs(model: Any, token_ids: list[int]) -> Tensor:
    """Of each token after the first, as transformers computes them."""
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids]), use_cache=False).logits[0].float()
    return torch.log_softmax(logits[:-1], dim=-1).gather(-1, torch.tensor(token_ids[1:]).unsqueeze(-1)).squeeze(-1)


def served_logprobs(llm: LLM, prompts: list[list[int]]) -> Tensor:
    results = llm.generate(prompts, SamplingParams(max_tokens=0, prompt_logprobs=0))
    entries = [entry for result in results for entry in result.prompt_logprobs or []]
    return torch.tensor([entry.logprob for entry in entries if entry is not None])


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU does not multiply bfloat16")
def test_served_bfloat16_is_as_near_to_float32_as_transformers_is() -> None:
    from transformers import AutoModelForCausalLM

    llm = LLM(dtype="bfloat16", max_num_batched_tokens=48, max_num_seqs=2)
    prompts = [llm.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    exact, own = (
        torch.cat([own_logprobs(model, ids) for ids in prompts])
        for model in (
            AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        )
    )
    own_distance = float((own - exact).abs().mean())
    distance = float((served_logprobs(llm, prompts) - exact).abs().mean())
    assert 0 < distance <= own_distance * MARGIN, (distance, own_distance)
