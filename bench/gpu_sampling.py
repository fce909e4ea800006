"""What choosing a step's tokens costs on a GPU, by the Triton kernels and by torch: `python -m bench.gpu_sampling`.

Milliseconds from the first launch to the last token on the host, the lowest of some rounds, for bfloat16 logits as
`bench.sampling` makes them. Penalties are counted on the device. Used by `bench.gpu_check`. Not yet run on a GPU.
"""

import argparse
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench.sampling import SETTINGS, make_logits
from orcinus.engine.grammar.masks import pack_tokens
from orcinus.engine.sampling.choice import triton_sampler
from orcinus.engine.sampling.history import TokenHistory
from orcinus.engine.sampling.row import SamplingRow
from orcinus.engine.sampling.sampler import Sampler
from orcinus.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from orcinus.engine.sampling.triton_sampler import TritonSampler

_NUM_TOKENS = 1000  # that a request has, half of them its prompt
_ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_sampling", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only tries this script")
    parser.add_argument("--vocab-size", type=int, default=151_936)
    options = parser.parse_args()
    print(sampling_table(torch.device(options.device), [1, 32, 256], options.vocab_size))


def sampling_table(device: torch.device, batch_sizes: Iterable[int], vocab_size: int) -> str:
    """Return a table of each setting, kind of logits and batch size."""
    by_triton = triton_sampler(device, torch.bfloat16)
    lines = ["| sampling | logits | rows | torch, ms | Triton, ms |", "|---|---|---:|---:|---:|"]
    for num_rows in batch_sizes:
        for shape in ("flat", "peaked"):
            logits = make_logits(shape, num_rows, vocab_size).to(device)
            for name, params in SETTINGS.items():
                history = TokenHistory(num_rows, vocab_size, device)
                rows = [make_row(i, vocab_size, params, history) for i in range(num_rows)]
                times = [
                    "–" if skipped else f"{1000 * measure(sampler, logits, rows, history):.2f}"
                    for sampler, skipped in ((None, False), (by_triton, by_triton is None))
                ]
                lines.append(f"| {name} | {shape} | {num_rows} | {' | '.join(times)} |")
    return "\n".join(lines) + "\n"


def make_row(slot: int, vocab_size: int, params: Mapping[str, Any], history: TokenHistory) -> SamplingRow:
    sampling = SamplingParams(**params)
    row = SamplingRow(sampling, seed=slot, num_prompt_tokens=_NUM_TOKENS // 2, slot=slot)
    rng = np.random.default_rng(slot)
    if sampling.has_penalties:
        history.begin(slot, sampling, rng.integers(0, vocab_size, _NUM_TOKENS).tolist(), row.num_prompt_tokens)
    if sampling.allowed_token_ids:
        row.allowed = pack_tokens(rng.choice(vocab_size, vocab_size // 10, replace=False), vocab_size)
    return row


def measure(by_triton: "TritonSampler | None", logits: Tensor, rows: list[SamplingRow], history: TokenHistory) -> float:
    """Return the seconds that a step's sampling takes, alone on the device."""
    sampler = Sampler([1], by_triton)
    times_s = []
    for _ in range(_ROUNDS):
        own = logits.clone()
        if logits.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        sampler.launch(own, rows, [_NUM_TOKENS] * len(rows), history).wait()
        times_s.append(time.perf_counter() - started)
    return min(times_s)


if __name__ == "__main__":
    main()
