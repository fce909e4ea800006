"""What choosing a step's tokens costs: rows of logits of a large vocabulary, by the native kernel and by torch.

    python -m bench.sampling [--rows 32] [--vocab-size 151936] [--threads 2] [--rounds 7] [--only NAME,...] [--no-torch]

Milliseconds for all rows, the lowest of the rounds, in turns: the processor time of all threads together, and for the
kernel the time from call to return too. Logits are bfloat16: "flat" ones are normal, as random weights make them, and
"peaked" ones fall with the rank of a token as words of a text do (Zipf).
"""

import argparse
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from orcinus.engine.grammar.masks import pack_tokens
from orcinus.engine.kernels.library import load_library
from orcinus.engine.sampling import native
from orcinus.engine.sampling.row import SamplingRow, penalty_counts
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.sampling_params import SamplingParams

_POSITION = 1000  # tokens that a request has, all of which its penalties look at
_ZIPF_EXPONENT = 1.2
_MASKED_SHARE = 0.1  # of the vocabulary is what a grammar allows
_QWEN: Mapping[str, Any] = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "temperature 0.7, top_p 0.8, top_k 20": _QWEN,
    "temperature 1, top_p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "temperature 2, top_p 0.95": {"temperature": 2.0, "top_p": 0.95},
    "greedy, 5 log-probabilities": {"temperature": 0.0, "logprobs": 5},
    "0.7, 0.8, 20, repetition_penalty 1.05": {**_QWEN, "repetition_penalty": 1.05},
    "0.7, 0.8, 20, a tenth of all tokens allowed": {**_QWEN, "allowed_token_ids": (0,)},
}


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    library = load_library()
    if library is not None:
        library.use_threads(options.threads, own=True)
    print("| sampling | logits | torch, CPU ms | native, CPU ms | native, ms |\n|---|---|---:|---:|---:|")
    for name in options.only or SETTINGS:
        for shape in ("flat", "peaked"):
            logits = make_logits(shape, options.rows, options.vocab_size)
            rows = [make_row(i, options.vocab_size, SETTINGS[name]) for i in range(options.rows)]
            figures = measure(logits, rows, options.rounds, has_torch=not options.no_torch)
            print(f"| {name} | {shape} | {' | '.join(figures)} |", flush=True)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.sampling", description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", choices=SETTINGS, help="a setting; may be given several times")
    parser.add_argument("--no-torch", action="store_true", help="measure the kernel alone")
    return parser.parse_args()


def make_logits(shape: str, num_rows: int, vocab_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, vocab_size, generator=generator)
    if shape == "peaked":
        ranks = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(num_rows)])
        logits = 0.3 * logits - _ZIPF_EXPONENT * torch.log1p(ranks.float())
    return logits.bfloat16()


def make_row(number: int, vocab_size: int, params: Mapping[str, Any]) -> SamplingRow:
    sampling = SamplingParams(**params)
    row = SamplingRow(sampling, seed=number, num_prompt_tokens=_POSITION // 2)
    rng = np.random.default_rng(number)
    token_ids = rng.integers(0, vocab_size, _POSITION).tolist()
    row.counts = penalty_counts(sampling, token_ids, row.num_prompt_tokens)
    if sampling.allowed_token_ids:
        row.allowed = pack_tokens(rng.choice(vocab_size, int(_MASKED_SHARE * vocab_size), replace=False), vocab_size)
    return row


def measure(logits: Tensor, rows: list[SamplingRow], num_rounds: int, *, has_torch: bool) -> list[str]:
    """Return the three figures of a line; a dash for what is not there."""
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {}
    if load_library() is not None:
        ways["native"] = nullcontext
    if has_torch:
        ways["torch"] = lambda: patch.object(native, "sampling_library", return_value=None)
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    wall: dict[str, list[float]] = {way: [] for way in ways}
    positions = np.full(len(rows), _POSITION)
    sampler = Sampler([0])
    for _ in range(num_rounds + 1):
        for way, chosen in ways.items():
            copied = logits.clone()
            with chosen():
                started, started_cpu = time.perf_counter(), time.process_time()
                sampler.sample(copied, rows, positions)
                cpu[way].append(1e3 * (time.process_time() - started_cpu))
                wall[way].append(1e3 * (time.perf_counter() - started))
    figures = (cpu.get("torch"), cpu.get("native"), wall.get("native"))
    return ["-" if times is None else f"{min(times[1:]):.1f}" for times in figures]


if __name__ == "__main__":
    raise SystemExit(main())
