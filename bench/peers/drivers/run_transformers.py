"""Drives transformers' continuous batching: arguments are MODEL, SLOTS and KV_TOKENS, the size of its cache."""

import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from bench.peers.drivers.conversation import Answer, Facts, Request, Run, Sampling, converse

_PAGE_SIZE = 256
_NO_END = -1


class Batching:
    """Begins a manager with the first requests: transformers gives it its sampling once."""

    def __init__(self, model: str, slots: int, kv_tokens: int) -> None:
        self._weights: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self._config = ContinuousBatchingConfig(
            page_size=_PAGE_SIZE,
            num_blocks=kv_tokens // _PAGE_SIZE,
            max_batch_tokens=512,
            max_requests_per_batch=slots,
            allow_block_sharing=False,
        )
        self._manager: Any = None

    def run(self, requests: list[Request], max_concurrency: int, sampling: Sampling) -> list[Answer]:
        if self._manager is None:
            self._manager = self._weights.init_continuous_batching(
                generation_config=_generation_config(sampling), continuous_batching_config=self._config
            )
            self._manager.start()
        return run(self._manager, requests, max_concurrency)


def _generation_config(sampling: Sampling) -> GenerationConfig:
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling["temperature"] > 0:
        # 50 is what it takes for top_k where nothing is said.
        chosen = {"do_sample": True, **sampling, "top_k": int(sampling.get("top_k", 0))}
    return GenerationConfig(eos_token_id=_NO_END, pad_token_id=0, **chosen)  # type: ignore[no-untyped-call]


def load(model: str, slots: int, kv_tokens: int) -> tuple[Run, Facts]:
    facts: Facts = {"weights and cache": "bfloat16", "threads": torch.get_num_threads()}
    return Batching(model, slots, kv_tokens).run, facts


def run(manager: Any, requests: list[Request], max_concurrency: int) -> list[Answer]:
    answers: list[Answer] = []
    under_way: dict[str, Answer] = {}
    while len(answers) < len(requests) or under_way:
        while len(answers) < len(requests) and len(under_way) < max_concurrency:
            prompt, max_tokens = requests[len(answers)]
            answer = Answer(len(prompt), time.perf_counter())
            answers.append(answer)
            under_way[manager.add_request(prompt, max_new_tokens=max_tokens, record_timestamps=True)] = answer
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise RuntimeError("transformers stopped generating")
        if result is not None and result.is_finished():
            _take(result, under_way.pop(result.request_id))
    return answers


def _take(result: Any, answer: Answer) -> None:
    answer.completion_tokens = len(result.generated_tokens)
    answer.chunk_times_s = list(result.timestamps)
    answer.error = result.error


if __name__ == "__main__":
    converse(lambda: load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
