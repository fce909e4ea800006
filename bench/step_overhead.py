"""What a decode step costs beside the model: a tiny model's step, split into preparing it, running it and sampling.

    OMP_NUM_THREADS=1 python -m bench.step_overhead [--rows 1,32,256] [--steps 200] [--sampling greedy,seeded]

Milliseconds of this process' CPU, the least of many steps: with one thread, what the host does before a device could
begin and after it has ended. The model has random weights, one layer of 16 numbers and a vocabulary of 64.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orcinus.config.engine_config import EngineConfig
from orcinus.engine.messages import NewRequest, ScheduledRequest, StepPlan
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor

_PROMPT_TOKENS = 100
_VOCAB_SIZE = 64
_BLOCK_SIZE = 32
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {},
    "top_p": {"top_p": 0.9},
}


class Stopwatch:
    """Adds up the CPU time of the calls that it was put around."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def around(self, owner: object, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.elapsed_s += time.process_time() - started

        setattr(owner, name, timed)


def main() -> int:
    options = parse_arguments()
    with TemporaryDirectory() as directory:
        write_tiny_model(Path(directory))
        print("| sampling | rows | prepare, ms | model, ms | sample, ms | step, ms |\n|---|---:|---:|---:|---:|---:|")
        for sampling in options.sampling:
            for rows in options.rows:
                measure(Path(directory), sampling, rows, options.steps)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.step_overhead", description=__doc__)
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1, 32, 256])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sampling", type=lambda text: text.split(","), default=["greedy", "seeded"])
    return parser.parse_args()


def write_tiny_model(directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def measure(directory: Path, sampling: str, rows: int, num_steps: int) -> None:
    _, runner = build_executor(engine_config(directory, rows, num_steps))
    start(runner, rows, _PROMPT_TOKENS + num_steps, SamplingParams(**SAMPLING[sampling]))
    model, sampler = Stopwatch(), Stopwatch()
    model.around(runner._model, "hidden_states")
    model.around(runner._model, "logits")
    sampler.around(runner._sampler, "sample")
    times_ms = [step(runner, rows, i, model, sampler) for i in range(num_steps)]
    prepare, modelled, sampled, whole = (min(column) for column in zip(*times_ms, strict=True))
    print(f"| {sampling} | {rows} | {prepare:.3f} | {modelled:.3f} | {sampled:.3f} | {whole:.3f} |", flush=True)


def engine_config(directory: Path, rows: int, num_steps: int) -> EngineConfig:
    return EngineConfig(
        model=str(directory),
        dtype="float32",
        device="cpu",
        quantization=None,
        trust_remote_code=False,
        use_generation_config=False,
        pooling="auto",
        max_model_len=_PROMPT_TOKENS + num_steps + 1,
        max_num_seqs=rows,
        max_num_batched_tokens=max(_PROMPT_TOKENS, rows),
        target_itl_ms=None,
        target_ttft_ms=500.0,
        kv_cache_memory=None,
        state_cache_memory=None,
        block_size=_BLOCK_SIZE,
        enable_prefix_caching=False,
        batching="continuous",
        batch_wait_ms=0.0,
        deterministic=False,
        seed=0,
        log_level="warning",
        log_format="text",
    )


def start(runner: ModelRunner, rows: int, num_tokens: int, sampling: SamplingParams) -> None:
    """Requests whose prompts are computed, with the blocks of `num_tokens` each."""
    width = -(-num_tokens // _BLOCK_SIZE)
    for i in range(rows):
        new = NewRequest(
            request_id=f"r{i}",
            token_ids=[(i + j) % _VOCAB_SIZE for j in range(_PROMPT_TOKENS)],
            num_prompt_tokens=_PROMPT_TOKENS,
            sampling=sampling,
        )
        blocks = [*range(i * width, (i + 1) * width)]
        chunk = ScheduledRequest(
            request_id=f"r{i}", num_computed_tokens=0, num_tokens=_PROMPT_TOKENS, new_block_ids=[blocks]
        )
        runner.execute(StepPlan(scheduled=[chunk], new_requests=[new]))


def step(
    runner: ModelRunner, rows: int, index: int, model: Stopwatch, sampler: Stopwatch
) -> tuple[float, float, float, float]:
    """Milliseconds: what is neither model nor sampler, the model, the sampler, all."""
    computed = _PROMPT_TOKENS + index
    plan = StepPlan(
        scheduled=[
            ScheduledRequest(request_id=f"r{i}", num_computed_tokens=computed, num_tokens=1) for i in range(rows)
        ]
    )
    model.elapsed_s = sampler.elapsed_s = 0.0
    started = time.process_time()
    runner.execute(plan)
    elapsed_s = time.process_time() - started
    prepare_s = elapsed_s - model.elapsed_s - sampler.elapsed_s
    return 1000 * prepare_s, 1000 * model.elapsed_s, 1000 * sampler.elapsed_s, 1000 * elapsed_s


if __name__ == "__main__":
    raise SystemExit(main())
