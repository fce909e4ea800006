"""Drives transformers' continuous batching: arguments are MODEL, SLOTS and KV_TOKENS, the size of its cache."""

import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from bench.peers.drivers.conversation import Answer, Facts, Request, Run, converse

_PAGE_SIZE = 256
_NO_END = -1


def load(model: str, slots: int, kv_tokens: int) -> tuple[Run, Facts]:
    weights: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa")
    manager = weights.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=_NO_END, pad_token_id=0),  # type: ignore[no-untyped-call]
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=_PAGE_SIZE,
            num_blocks=kv_tokens // _PAGE_SIZE,
            max_batch_tokens=512,
            max_requests_per_batch=slots,
            allow_block_sharing=False,
        ),
    )
    manager.start()
    facts: Facts = {"weights and cache": "bfloat16", "threads": torch.get_num_threads()}
    return lambda requests, max_concurrency: run(manager, requests, max_concurrency), facts


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
