"""Drives this project's engine loop without a server: arguments are those of `orcinus serve`.

What is left out is what HTTP costs: the server process, its messages, text. The model, the scheduler and the
settings are the server's own.
"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from bench.peers.drivers.conversation import Answer, Facts, Request, Run, Sampling, converse
from orcinus.config.arguments import Parser, add_settings, settings_from
from orcinus.engine.core import EngineCore
from orcinus.engine.messages import AddRequest
from orcinus.engine.platform.device import limit_spinning
from orcinus.engine.sampling_params import SamplingParams


def load(flags: Sequence[str]) -> tuple[Run, Facts]:
    limit_spinning()
    from orcinus.engine.startup.build import build_executor

    parser = Parser("run_orcinus", "[MODEL] [OPTIONS]", "", "")
    add_settings(parser, positional_model=True)
    config = settings_from(parser.parse(flags)).engine_config()
    info, executor = build_executor(config)
    core = EngineCore(
        info,
        executor,
        batch_wait_ms=config.batch_wait_ms,
        target_itl_ms=config.target_itl_ms,
        target_ttft_ms=config.target_ttft_ms,
    )
    facts: Facts = {
        "weights": info.dtype,
        "attention": info.attention_backend,
        "weight bytes": info.weight_bytes,
        "cache bytes": info.kv_cache_bytes,
    }
    return partial(run, core), facts


def run(core: EngineCore, requests: list[Request], max_concurrency: int, fields: Sampling) -> list[Answer]:
    answers: list[Answer] = []
    under_way = 0
    while len(answers) < len(requests) or under_way:
        while len(answers) < len(requests) and under_way < max_concurrency:
            answers.append(_add(core, len(answers), requests[len(answers)], fields))
            under_way += 1
        under_way -= _step(core, answers)
    return answers


def _add(core: EngineCore, number: int, request: Request, fields: Sampling) -> Answer:
    prompt, max_tokens = request
    now_s = time.monotonic()
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=number, **_exact(fields))
    core.add_request(AddRequest(request_id=str(number), prompt_token_ids=prompt, sampling=sampling, arrival_time=now_s))
    return Answer(len(prompt), now_s)


def _exact(fields: Sampling) -> dict[str, Any]:
    return {name: int(value) if name == "top_k" else value for name, value in fields.items()}


def _step(core: EngineCore, answers: list[Answer]) -> int:
    """Run a step, and return how many requests ended."""
    if (wait_s := core.wait_time_s()) is not None:
        time.sleep(wait_s)
    deltas = core.step().deltas
    now_s = time.monotonic()
    for delta in deltas:
        answer = answers[int(delta.request_id)]
        answer.completion_tokens += len(delta.token_ids)
        if delta.token_ids:
            answer.chunk_times_s.append(now_s)
        if delta.finish_reason == "error":
            answer.error = "the step failed"
    return sum(delta.finish_reason is not None for delta in deltas)


if __name__ == "__main__":
    converse(lambda: load(sys.argv[1:]))
