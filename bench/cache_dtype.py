"""Decoding over long contexts with each kind of KV cache: milliseconds of a whole step, and what the cache takes.

    python -m bench.cache_dtype [--shape qwen3-0.6b] [--streams 16,32] [--contexts 1024,2048] [--rounds 9]

Every round runs one step of each kind, in turn: a token for every stream, sampled greedily. Contexts count as computed
without having been: a step reads as much of the cache, whatever is in it. Weights are random, in bfloat16.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.engine_threads import restart_as_the_engine
from bench.random_model import SHAPES, write_model
from orcinus.config.settings import load_settings
from orcinus.engine.messages import EngineInfo, NewRequest, ScheduledRequest, StepPlan
from orcinus.engine.platform.device import device_name
from orcinus.engine.runner.model_runner import ModelRunner
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.startup.build import build_executor

KINDS = ("auto", "int8")


@dataclass(frozen=True, slots=True)
class Arm:
    """One kind of cache with a runner of its own."""

    info: EngineInfo
    runner: ModelRunner

    def start(self, num_streams: int, context: int, num_steps: int) -> None:
        """Let so many sequences have all of their context in the cache but its last token."""
        width = -(-(context + num_steps) // self.info.block_size)
        sampling = SamplingParams(temperature=0, max_tokens=num_steps, ignore_eos=True)
        new = [
            NewRequest(request_id=str(i), token_ids=[5] * context, num_prompt_tokens=context, sampling=sampling)
            for i in range(num_streams)
        ]
        scheduled = [
            ScheduledRequest(
                request_id=str(i),
                num_computed_tokens=context - 1,
                num_tokens=1,
                new_block_ids=[[*range(i * width, (i + 1) * width)]],
            )
            for i in range(num_streams)
        ]
        self.runner.execute(StepPlan(scheduled=scheduled, new_requests=new))

    def step_ms(self, num_streams: int, num_computed: int) -> float:
        scheduled = [
            ScheduledRequest(request_id=str(i), num_computed_tokens=num_computed, num_tokens=1)
            for i in range(num_streams)
        ]
        started = time.perf_counter()
        self.runner.execute(StepPlan(scheduled=scheduled))
        return (time.perf_counter() - started) * 1e3

    def stop(self, num_streams: int) -> None:
        self.runner.execute(StepPlan(scheduled=[], released=[str(i) for i in range(num_streams)]))


def main() -> int:
    restart_as_the_engine()
    options = parse_arguments()
    longest, most = max(options.contexts), max(options.streams)
    with TemporaryDirectory() as directory, torch.inference_mode():
        model = write_model(options.shape, Path(directory))
        arms = {kind: load(model, kind, most, longest + options.rounds + 1) for kind in KINDS}
        print(f"{options.shape}, {device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads\n")
        for kind, arm in arms.items():
            tokens = arm.info.num_kv_blocks * arm.info.block_size
            print(f"{kind}: {arm.info.kv_cache_bytes / tokens / 1024:.1f} KiB a token")
        print("\n| streams | context | auto, ms | int8, ms | ratio |\n|---:|---:|---:|---:|---:|")
        for context in options.contexts:
            for num_streams in options.streams:
                compare(arms, num_streams, context, options.rounds)
    return 0


def parse_arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m bench.cache_dtype", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--streams", type=numbers, default=[16, 32])
    parser.add_argument("--contexts", type=numbers, default=[1024, 2048])
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def load(model: Path, kind: str, num_streams: int, num_tokens: int) -> Arm:
    """Load the model with a cache that holds all of the streams."""
    settings = load_settings(
        model=str(model),
        device="cpu",
        dtype="bfloat16",
        kv_cache_dtype=kind,
        kv_cache_memory="16GiB",  # no more is taken than the streams can use
        max_num_seqs=num_streams,
        max_model_len=num_tokens,
    )
    return Arm(*build_executor(settings.engine_config()))


def compare(arms: dict[str, Arm], num_streams: int, context: int, rounds: int) -> None:
    for arm in arms.values():
        arm.start(num_streams, context, rounds + 1)
    times: dict[str, list[float]] = {kind: [] for kind in arms}
    for i in range(rounds):
        for kind, arm in arms.items():
            times[kind].append(arm.step_ms(num_streams, context + i))
    for arm in arms.values():
        arm.stop(num_streams)
    exact, in_8_bits = (times[kind] for kind in KINDS)
    ratio = statistics.median(a / b for a, b in zip(exact, in_8_bits, strict=True))
    medians = [statistics.median(column) for column in (exact, in_8_bits)]
    print(f"| {num_streams} | {context:,} | {medians[0]:.1f} | {medians[1]:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
