"""What deterministic mode costs: output tokens/s with it and without, prompts included.

    python -m bench.determinism [--models demo qwen3-0.6b] [--streams 1 16] [--dtype auto] [--rounds 3]

Two engines are loaded side by side, each in a process of its own, and serve the same requests in turn. The best of
the rounds counts for each, and the median of the rounds' ratios. `demo` is the model that comes with Orcinus, any other
name a shape of `bench.random_model`, or a directory.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.random_model import SHAPES, write_model
from orcinus.config.settings import demo_model_path

_PROMPT_TOKENS = 128
_OUTPUT_TOKENS = 64
_FIRST_TOKEN, _LAST_TOKEN = 300, 400  # no special ones


@dataclass(frozen=True, slots=True)
class Arm:
    """An engine in another process. It is sent numbers of streams and answers with tokens/s."""

    is_deterministic: bool
    connection: Connection

    def tokens_per_s(self, streams: int) -> float:
        self.connection.send(streams)
        speed: float = self.connection.recv()
        return speed


def main() -> int:
    options = parse_arguments()
    print("| model | dtype | streams | off, tokens/s | on, tokens/s | on/off |\n|---|---|---:|---:|---:|---:|")
    for name in options.models:
        with model_directory(name) as directory:
            report(name, directory, options)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.determinism", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["demo", "qwen3-0.6b"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


@contextmanager
def model_directory(name: str) -> Iterator[Path]:
    if name not in SHAPES:
        yield demo_model_path() if name == "demo" else Path(name)
        return
    with TemporaryDirectory() as directory:
        yield write_model(name, Path(directory))


def report(name: str, directory: Path, options: argparse.Namespace) -> None:
    with (
        arm(directory, options, is_deterministic=False) as off,
        arm(directory, options, is_deterministic=True) as on,
    ):
        for streams in options.streams:
            rounds = [speeds([off, on] if i % 2 else [on, off], streams) for i in range(options.rounds)]
            ratio = statistics.median(speed[True] / speed[False] for speed in rounds)
            best = {mode: max(speed[mode] for speed in rounds) for mode in (False, True)}
            print(
                f"| {name} | {options.dtype} | {streams} | {best[False]:.1f} | {best[True]:.1f} | {ratio:.2f} |",
                flush=True,
            )


def speeds(arms: list[Arm], streams: int) -> dict[bool, float]:
    return {arm.is_deterministic: arm.tokens_per_s(streams) for arm in arms}


@contextmanager
def arm(directory: Path, options: argparse.Namespace, *, is_deterministic: bool) -> Iterator[Arm]:
    settings = {"model": str(directory), "dtype": options.dtype, "deterministic": is_deterministic}
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, settings, max(options.streams)), daemon=True
    )
    process.start()
    try:
        ours.recv()
        yield Arm(is_deterministic, ours)
    finally:
        ours.send(None)
        process.join()


def serve(connection: Connection, settings: dict[str, Any], most_streams: int) -> None:
    """In the other process: load, warm up, then measure as often as it is asked, until it is sent None."""
    from orcinus.engine.frontend.llm import LLM
    from orcinus.engine.sampling_params import SamplingParams

    llm = LLM(
        device="cpu",
        max_model_len=_PROMPT_TOKENS + _OUTPUT_TOKENS,
        max_num_seqs=most_streams,
        enable_prefix_caching=False,
        **settings,
    )
    sampling = SamplingParams(temperature=0, max_tokens=_OUTPUT_TOKENS, ignore_eos=True)
    llm.generate(prompts(1), sampling)
    connection.send(None)
    while (streams := connection.recv()) is not None:
        start = time.perf_counter()
        llm.generate(prompts(streams), sampling)
        connection.send(streams * _OUTPUT_TOKENS / (time.perf_counter() - start))


def prompts(count: int) -> list[list[int]]:
    span = _LAST_TOKEN - _FIRST_TOKEN
    return [[_FIRST_TOKEN + (i * 31 + j * 7) % span for j in range(_PROMPT_TOKENS)] for i in range(count)]


if __name__ == "__main__":
    raise SystemExit(main())
