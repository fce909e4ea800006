"""What packed linear layers are worth: a model's products, and no more of it, by each of the ways to multiply.

    OMP_NUM_THREADS=1 python -m bench.linears [--shape qwen3-0.6b] [--rows 1,16,32,128] [--threads 2] [--rounds 9]

Every round runs all layers and the head in each way, in turn, on the same weights: plain `F.linear`, oneDNN with
packed weights, our own kernels in bfloat16, in 8 bits, in 8 bits with scales for groups of 32 inputs, in 4 bits for
groups of 16 (whose head has 8), and in the blocks of some types of GGUF. All but the first have projections of one
input merged. Medians over the rounds, and the median of the rounds' ratios to the first. Random weights in bfloat16.
`--ways` chooses among them, `--layers` so many of a model that is too large to be there in all ways at once, and
`--kernels` (or ORCINUS_KERNELS) what the kernels may use.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bench.gguf_model import quantized
from bench.random_model import SHAPES
from orcinus.config.settings import load_settings
from orcinus.engine.cpu.native_linear import NativeLinear, can_multiply
from orcinus.engine.cpu.packed_linear import PackedLinear, Packer, head_packer_for
from orcinus.engine.kernels.library import KERNEL_CHOICES, Library, load_library, use_kernels
from orcinus.engine.models.gguf_blocks import BlockRows
from orcinus.engine.platform.device import cpu_has_bfloat16, device_name

_BLOCK_TYPES = ("Q4_0", "Q8_0", "Q4_K", "Q6_K")

# Weights (out_features, in_features) that share an input.
Siblings = list[Tensor]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to multiply, with all products of a model in their order: each takes its input."""

    name: str
    products: Sequence[Callable[[Tensor], object]]

    def run(self, inputs: dict[int, Tensor], widths: Sequence[int]) -> float:
        """Milliseconds of one step."""
        started = time.perf_counter()
        for product, width in zip(self.products, widths, strict=True):
            product(inputs[width])
        return (time.perf_counter() - started) * 1e3


@torch.inference_mode()
def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    use_kernels(options.kernels)
    values = SHAPES[options.shape][2]
    groups = weights_of(values | {"num_hidden_layers": options.layers or values["num_hidden_layers"]})
    found = packers(options.threads)
    ways = [Way("plain", [partial(_apart, group) for group in groups])]
    ways += [way_of(name, pack, groups) for name, pack in found.items() if options.ways in name]
    widths = [group[0].shape[1] for group in groups]
    print(f"{options.shape}, {device_name(torch.device('cpu'))}, {options.threads} threads, torch {torch.__version__}")
    print("| rows | " + " | ".join(f"{way.name}, ms" for way in ways) + " |\n|---:" + "|---:" * len(ways) + "|")
    for rows in options.rows:
        inputs = {width: torch.randn(rows, width).bfloat16() for width in set(widths)}
        print(f"| {rows} | " + " | ".join(compare(ways, inputs, widths, options.rounds)) + " |", flush=True)
    return 0


def parse_arguments() -> argparse.Namespace:
    shapes = [name for name, (_, _, values) in SHAPES.items() if "intermediate_size" in values]
    parser = argparse.ArgumentParser(prog="python -m bench.linears", description=__doc__)
    parser.add_argument("--shape", choices=shapes, default="qwen3-0.6b")
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16, 32, 128])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ways", default="", help="those whose names have this in them")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--kernels", choices=KERNEL_CHOICES, default=_most_of(load_settings().kernels))
    return parser.parse_args()


def _most_of(kernels: str) -> str:
    return list(KERNEL_CHOICES)[-1] if kernels == "auto" else kernels


def way_of(name: str, pack: Packer, groups: Sequence[Siblings]) -> Way:
    """All products, the head's as it would be served. Says how long packing took."""
    started = time.perf_counter()
    packs = [pack] * (len(groups) - 1) + [head_packer_for(pack)]
    products = [own(group, [None] * len(group)) for own, group in zip(packs, groups, strict=True)]
    seconds, size = time.perf_counter() - started, sum(getattr(product, "packed_bytes", 0) for product in products)
    print(f"{name}: {size / 1e6:.0f} MB, packed in {seconds:.1f} s")
    return Way(name, products)


def weights_of(values: dict[str, Any]) -> list[Siblings]:
    """Of every layer in turn, then the head."""
    hidden, mlp, num_heads = values["hidden_size"], values["intermediate_size"], values["num_attention_heads"]
    head_dim = values.get("head_dim", hidden // num_heads)
    heads, kv_heads = num_heads * head_dim, values["num_key_value_heads"] * head_dim
    shapes = [[(heads, hidden), (kv_heads, hidden), (kv_heads, hidden)], [(hidden, heads)]]
    shapes += [[(mlp, hidden), (mlp, hidden)], [(hidden, mlp)]]
    every = shapes * values["num_hidden_layers"] + [[(values["vocab_size"], hidden)]]
    return [[torch.randn(shape).bfloat16() / shape[1] ** 0.5 for shape in siblings] for siblings in every]


def packers(num_threads: int) -> dict[str, Packer]:
    """All that this machine has."""
    found: dict[str, Packer] = {"oneDNN packed": PackedLinear} if cpu_has_bfloat16() else {}
    library = load_library()
    if library is None:
        return found
    library.use_threads(num_threads, own=True)
    if can_multiply(library, "bfloat16"):
        found["native bfloat16"] = partial(NativeLinear, library, "bfloat16")
    if can_multiply(library, "int8"):
        found["native int8"] = partial(NativeLinear, library, "int8")
    found["native int8 in groups"] = partial(NativeLinear, library, "int8-groups")
    found["native int4"] = partial(NativeLinear, library, "int4")
    return found | {f"native {name}": partial(_in_blocks, library, name) for name in _BLOCK_TYPES}


def _in_blocks(
    library: Library, type_name: str, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> NativeLinear:
    rows = [BlockRows(quantized(weight.float().numpy(), type_name), type_name) for weight in weights]
    return NativeLinear(library, rows[0].form, rows, biases)


def _apart(weights: Siblings, x: Tensor) -> None:
    for weight in weights:
        F.linear(x, weight)


def compare(ways: Sequence[Way], inputs: dict[int, Tensor], widths: Sequence[int], rounds: int) -> list[str]:
    """A cell for each way. The first round does not count."""
    times = [[way.run(inputs, widths) for way in ways] for _ in range(rounds + 1)][1:]
    plain = [round_times[0] for round_times in times]
    cells = []
    for measured in zip(*times, strict=True):
        ratio = statistics.median(first / own for first, own in zip(plain, measured, strict=True))
        cells.append(f"{statistics.median(measured):.1f} ({ratio:.2f}x)")
    return cells


if __name__ == "__main__":
    raise SystemExit(main())
