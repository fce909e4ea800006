"""Attention alone, gathering the cache's blocks against reading them in place: milliseconds per step of a model.

    python -m bench.attention [--rounds 15] [--dtype bfloat16] [--block-sizes 16,32,64,128] [--in-place-only]
    python -m bench.attention --instruction-sets avx512-bf16,amx [--layers 4] [--loads contexts]
    python -m bench.attention --in-place-only --cache-dtypes auto,int8 --loads contexts

Every round runs each backend once on the same tensors, in turn, with as many layers as the model has, so that the cache
does not stay in the processor's. Medians over the rounds, and the median of the rounds' ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from orcinus.engine.attention.interface import AttentionBackend, AttentionSpec, LayerCache, LayerShape, batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import INSTRUCTION_SETS, Library, load_library
from orcinus.engine.platform.device import device_name

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Model:
    """The part of a model's shape that attention sees."""

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Load:
    """One step: the positions that each sequence computes."""

    name: str
    spans: list[tuple[int, int]]


QWEN = Model("0.6B", 28, 16, 8, 128)
DEMO = Model("demo", 5, 4, 2, 64)
CASES = [
    *((QWEN, Load(f"{n} x 192", [(191, 192)] * n)) for n in (1, 4, 16, 32)),
    (QWEN, Load("1 x 4096", [(4095, 4096)])),
    (QWEN, Load("chunk of 1000", [(0, 1000)])),
    (QWEN, Load("16 x 192 + chunk of 256", [(191, 192)] * 16 + [(256, 512)])),
    *((DEMO, Load(f"{n} x 100", [(99, 100)] * n)) for n in (1, 16)),
]
# Decoding and prompts in chunks, over contexts of several lengths.
CONTEXTS = [
    *((QWEN, Load(f"{n} x {end}", [(end - 1, end)] * n)) for end in (128, 1024, 4096) for n in (16, 32)),
    *(
        (QWEN, Load(f"{count} after {first}", [(first, first + count)]))
        for first in (0, 512, 4096)
        for count in (128, 512)
    ),
]
LOADS = {"steps": CASES, "contexts": CONTEXTS}


class Arm:
    """One backend with a cache for every layer of a model."""

    def __init__(
        self, backend: AttentionBackend, model: Model, load: Load, block_size: int, dtype: torch.dtype
    ) -> None:
        widths = [-(-end // block_size) for _, end in load.spans]
        blocks = np.random.default_rng(0).permutation(sum(widths)).astype(np.int32)
        tables = np.zeros((len(widths), max(widths)), dtype=np.int32)
        for row, own in zip(tables, np.split(blocks, np.cumsum(widths)[:-1]), strict=True):
            row[: len(own)] = own
        self._backend = backend
        self._spec = AttentionSpec(model.head_dim**-0.5)
        self._layers = [_filled(backend, model, sum(widths), block_size, dtype) for _ in range(model.num_layers)]
        self._load, self._tables, self._block_size = load, tables, block_size
        num_tokens = sum(end - first for first, end in load.spans)
        width = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
        merged = torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(1)).to(dtype)
        heads = merged.view(num_tokens, -1, model.head_dim)
        sizes = [model.num_heads, model.num_kv_heads, model.num_kv_heads]
        self._query, self._keys, self._values = torch.split(heads, sizes, dim=1)

    def step(self, clock: Callable[[], float]) -> float:
        """Milliseconds of one step."""
        started = clock()
        meta = batch_metadata(self._load.spans, self._tables, self._block_size, CPU)
        for layer in self._layers:
            self._backend.run(layer, self._query, self._keys, self._values, spec=self._spec, meta=meta)
        return (clock() - started) * 1e3


def _filled(
    backend: AttentionBackend, model: Model, num_blocks: int, block_size: int, dtype: torch.dtype
) -> LayerCache:
    shape = LayerShape(model.num_kv_heads, model.head_dim, model.head_dim)
    layer = backend.allocate(shape, num_blocks, block_size, dtype, CPU)
    for cached in (layer.keys, layer.values):
        cached.fill_(0.1 if cached.is_floating_point() else 63)  # of a scale, both bytes make 0.7
    return layer


def backends(args: argparse.Namespace) -> Iterator[tuple[str, AttentionBackend]]:
    if not args.in_place_only and not args.instruction_sets:
        yield "gather", TorchBackend()
    best = load_library()
    if best is None:
        raise SystemExit("there is no native kernel here")
    for name in args.instruction_sets or [best.instruction_set]:
        library = Library(library_path(), INSTRUCTION_SETS.index(name))
        library.use_threads(torch.get_num_threads(), own=False)
        for cache_dtype in args.cache_dtypes:
            in_8_bits = cache_dtype == "int8"
            yield library.instruction_set + " int8" * in_8_bits, NativeBackend(library, stores_int8=in_8_bits)


@torch.inference_mode()
def compare(model: Model, load: Load, args: argparse.Namespace) -> None:
    dtype = getattr(torch, args.dtype)
    arms = {
        f"{name} {block_size}": Arm(backend, model, load, block_size, dtype)
        for block_size in args.block_sizes
        for name, backend in backends(args)
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(args.rounds + 1):
        for name, arm in arms.items():
            elapsed_ms = arm.step(time.process_time if args.cpu_time else time.perf_counter)
            if round_number:
                times[name].append(elapsed_ms)
    first = next(iter(times.values()))
    for name, measured in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, measured, strict=True))
        print(
            f"{model.name:5} {load.name:24} {name:16} {statistics.median(measured):9.3f} ms {ratio:6.2f}x", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare gathering the KV cache with reading it in place.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--block-sizes", type=lambda text: [int(n) for n in text.split(",")], default=[32])
    parser.add_argument(
        "--instruction-sets", type=lambda text: text.split(","), default=[], help="to compare with each other"
    )
    parser.add_argument("--cache-dtypes", type=lambda text: text.split(","), default=["auto"], help="auto, int8")
    parser.add_argument("--loads", choices=LOADS, default="steps")
    parser.add_argument("--layers", type=int, help="instead of as many as the model has")
    parser.add_argument("--in-place-only", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="of all threads: for a machine that is shared")
    parser.add_argument("--only", default="", help="only loads whose name contains this")
    args = parser.parse_args()
    print(f"{device_name(CPU)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.dtype}")
    for model, load in LOADS[args.loads]:
        if args.only in f"{model.name} {load.name}":
            compare(replace(model, num_layers=args.layers or model.num_layers), load, args)


if __name__ == "__main__":
    main()
