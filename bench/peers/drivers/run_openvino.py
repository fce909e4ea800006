"""Drives OpenVINO GenAI's continuous batching, in its own environment: arguments are MODEL, SLOTS and KV_GIB."""

import sys
import time
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found,unused-ignore]
import openvino_genai  # type: ignore[import-not-found,unused-ignore]

from bench.peers.drivers.conversation import Answer, Request, Run, converse


def load(model: str, slots: int, kv_gib: int) -> Run:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = slots
    scheduler.cache_size = kv_gib
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU")
    return lambda requests, max_concurrency: run(pipeline, requests, max_concurrency)


def run(pipeline: Any, requests: list[Request], max_concurrency: int) -> list[Answer]:
    answers: list[Answer] = []
    handles: dict[int, Any] = {}
    while len(answers) < len(requests) or handles:
        while len(answers) < len(requests) and len(handles) < max_concurrency:
            prompt, max_tokens = requests[len(answers)]
            answer = Answer(len(prompt), time.monotonic())
            handles[len(answers)] = _add(pipeline, len(answers), prompt, max_tokens)
            answers.append(answer)
        pipeline.step()
        now_s = time.monotonic()
        for number, handle in list(handles.items()):
            _read(handle, answers[number], now_s)
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                del handles[number]
    return answers


def _add(pipeline: Any, number: int, prompt: list[int], max_tokens: int) -> Any:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    return pipeline.add_request(number, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)


def _read(handle: Any, answer: Answer, now_s: float) -> None:
    while handle.can_read():
        answer.completion_tokens += sum(len(output.generated_ids) for output in handle.read().values())
        answer.chunk_times_s.append(now_s)


if __name__ == "__main__":
    converse(lambda: load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
