"""What packed and merged linear layers are worth: a model's decoder with plain layers, then with packed ones.

    OMP_NUM_THREADS=1 python -m bench.linears [--shape qwen3-0.6b] [--rows 1,16,32,128] [--rounds 7]

Random weights in bfloat16, one process, without attention's cache and without the head. Packing changes the model, so
the two are measured one after the other: nothing else may be running.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from bench.random_model import SHAPES
from engine.packed_linear import can_pack, pack_linears


def main() -> int:
    options = parse_arguments()
    if not can_pack(torch.device("cpu"), torch.bfloat16):
        print("this CPU or this torch cannot pack bfloat16 layers")
        return 1
    model = build_model(options.shape)
    with torch.inference_mode():
        plain = [forward_ms(model, rows, options.rounds) for rows in options.rows]
        started = time.perf_counter()
        count = pack_linears(model, keep=[model.get_input_embeddings().weight])
        packed_s = time.perf_counter() - started
        packed = [forward_ms(model, rows, options.rounds) for rows in options.rows]
    print(f"{options.shape}, {torch.get_num_threads()} threads: {count} layers packed in {packed_s:.1f} s")
    print("| rows | plain, ms | packed, ms | ratio |\n|---:|---:|---:|---:|")
    for rows, before, after in zip(options.rows, plain, packed, strict=True):
        print(f"| {rows} | {before:.1f} | {after:.1f} | {before / after:.2f} |")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.linears", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16, 32, 128])
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def build_model(shape: str) -> Any:
    import transformers

    model_name, config_name, values = SHAPES[shape]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**values, dtype=torch.bfloat16)
    return getattr(transformers, model_name)(config).bfloat16().eval().requires_grad_(False)


def forward_ms(model: Any, rows: int, rounds: int) -> float:
    """The median of several runs, after one that does not count."""
    token_ids = torch.randint(0, 1000, (1, rows))
    times_s = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        model.base_model(token_ids, use_cache=False)
        times_s.append(time.perf_counter() - started)
    return 1000 * statistics.median(times_s[1:])


if __name__ == "__main__":
    raise SystemExit(main())
