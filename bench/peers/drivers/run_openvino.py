"""Drives OpenVINO GenAI's continuous batching in its own environment. Arguments: MODEL SLOTS KV_GIB NAME=VALUE...

A name in capitals is a property of the plugin (`KV_CACHE_PRECISION=bf16`), any other a field of `SchedulerConfig`
(`max_num_batched_tokens=2048`).
"""

import os
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found,unused-ignore]
import openvino_genai  # type: ignore[import-not-found,unused-ignore]

from bench.peers.drivers.conversation import Answer, Facts, Request, Run, Sampling, converse

_TOLD = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "INFERENCE_NUM_THREADS")


def load(model: str, slots: int, kv_gib: int, given: dict[str, str]) -> tuple[Run, Facts]:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = slots
    scheduler.cache_size = kv_gib
    scheduler.dynamic_split_fuse = True
    for name, value in given.items():
        if not name.isupper():
            setattr(scheduler, name, int(value))
    # Left alone it may take fewer threads than there are cores.
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0))}
    properties |= {name: value for name, value in given.items() if name.isupper()}
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
    return partial(run, pipeline), _facts(scheduler, properties)


def _facts(scheduler: Any, properties: dict[str, Any]) -> Facts:
    """The plugin's own defaults where nothing was given: its cache has fewer bits than the others'."""
    core = openvino.Core()
    told = {name: properties[name] if name in properties else core.get_property("CPU", name) for name in _TOLD}
    named = {name: v.get_type_name() if isinstance(v, openvino.Type) else str(v) for name, v in told.items()}
    return {**named, "tokens a step": int(scheduler.max_num_batched_tokens)}


def run(pipeline: Any, requests: list[Request], max_concurrency: int, sampling: Sampling) -> list[Answer]:
    answers: list[Answer] = []
    handles: dict[int, Any] = {}
    while len(answers) < len(requests) or handles:
        while len(answers) < len(requests) and len(handles) < max_concurrency:
            answer = Answer(len(requests[len(answers)][0]), time.monotonic())
            handles[len(answers)] = _add(pipeline, len(answers), requests[len(answers)], sampling)
            answers.append(answer)
        pipeline.step()
        now_s = time.monotonic()
        for number, handle in list(handles.items()):
            _read(handle, answers[number], now_s)
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                del handles[number]
    return answers


def _add(pipeline: Any, number: int, request: Request, sampling: Sampling) -> Any:
    prompt, max_tokens = request
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    if sampling["temperature"] > 0:
        config.do_sample = True
        for name, value in sampling.items():
            setattr(config, name, int(value) if name == "top_k" else value)
    return pipeline.add_request(number, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)


def _read(handle: Any, answer: Answer, now_s: float) -> None:
    while handle.can_read():
        answer.completion_tokens += sum(len(output.generated_ids) for output in handle.read().values())
        answer.chunk_times_s.append(now_s)


if __name__ == "__main__":
    converse(
        lambda: load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), dict(word.split("=", 1) for word in sys.argv[4:]))
    )
