"""Every attention backend that a GPU has, on the same steps: how far from float64, and how long one layer takes.

    python -m bench.gpu_attention [--device cuda] [--dtype bfloat16]

One layer in the shape of Qwen3-0.6B's over a cache of random numbers. Times are the least of several rounds, launches
included; the last column is what reading the keys and values alone takes at the bandwidth of a copy. Not yet run on a
GPU; on a CPU it only tries itself out.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from orcinus.engine.attention.choice import choose_backend
from orcinus.engine.attention.flash_backend import FlashBackend
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache, LayerShape, batch_metadata
from orcinus.engine.attention.torch_backend import TorchBackend

_NUM_HEADS, _SHAPE = 16, LayerShape(8, 128, 128)
_SPEC = AttentionSpec(128**-0.5)
_BLOCK_SIZE = 256
_ROUNDS, _REPEATS = 5, 20


@dataclass(frozen=True, slots=True)
class Load:
    """The positions that each sequence of a step computes."""

    name: str
    spans: list[tuple[int, int]]

    @property
    def num_keys(self) -> int:
        return sum(end for _, end in self.spans)


LOADS = {
    "cuda": [
        Load("1 x 4096", [(4095, 4096)]),
        Load("8 x 4096", [(4095, 4096)] * 8),
        Load("32 x 1024", [(1023, 1024)] * 32),
        Load("256 x 512", [(511, 512)] * 256),
        Load("chunk of 2048", [(0, 2048)]),
        Load("chunk of 512 after 3584", [(3584, 4096)]),
        Load("64 x 512 + chunk of 1024", [(511, 512)] * 64 + [(0, 1024)]),
    ],
    "cpu": [Load("2 x 64", [(63, 64)] * 2), Load("chunk of 32", [(0, 32)])],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_attention", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only tries this script")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(attention_table(device, getattr(torch, options.dtype), copy_bandwidth(device)))
    return 0


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / elapsed_s(lambda: target.copy_(source), device)


def elapsed_s(function: Callable[[], object], device: torch.device) -> float:
    """The least of several rounds, of one of several calls in a row."""
    times_s = []
    for _ in range(_ROUNDS):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(_REPEATS):
            function()
        wait_for(device)
        times_s.append((time.perf_counter() - started) / _REPEATS)
    return min(times_s)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def attention_table(device: torch.device, dtype: torch.dtype, bandwidth: float) -> str:
    """A table in markdown."""
    lines = ["| step | attention | relative error | one layer, µs | KV read alone, µs |", "|---|---|---:|---:|---:|"]
    for load in LOADS[device.type]:
        cache, query, meta = step_of(load, device, dtype)
        expected = exact(cache, query, meta)
        read_us = 1e6 * load.num_keys * _SHAPE.elements_per_token * dtype.itemsize / bandwidth
        for backend in backends(device, dtype):
            got = backend.attend(cache, query, _SPEC, meta)
            error = float((got.double() - expected).abs().max() / expected.abs().max())
            taken_us = 1e6 * elapsed_s(partial(backend.attend, cache, query, _SPEC, meta), device)
            lines.append(f"| {load.name} | {backend.name} | {error:.1e} | {taken_us:.1f} | {read_us:.1f} |")
    return "\n".join(lines) + "\n"


def backends(device: torch.device, dtype: torch.dtype) -> Iterator[TorchBackend]:
    """The chosen one, the one it falls back on, and gathering."""
    backend = choose_backend(device, dtype)
    if isinstance(backend, FlashBackend):
        yield backend
        backend = backend.fallback
    if isinstance(backend, TorchBackend) and backend.name != TorchBackend.name:
        yield backend
    yield TorchBackend()


def step_of(load: Load, device: torch.device, dtype: torch.dtype) -> tuple[LayerCache, Tensor, AttentionMetadata]:
    width = max(-(-end // _BLOCK_SIZE) for _, end in load.spans)
    count = width * len(load.spans)
    tables = np.random.default_rng(0).permutation(count).astype(np.int32).reshape(-1, width)
    cache = TorchBackend().allocate(_SHAPE, count, _BLOCK_SIZE, dtype, device)
    for cached in (cache.keys, cache.values):
        cached.normal_()
    num_tokens = sum(end - first for first, end in load.spans)
    query = torch.randn(num_tokens, _NUM_HEADS, _SHAPE.key_dim, device=device).to(dtype)
    return cache, query, batch_metadata(load.spans, tables, _BLOCK_SIZE, device)


def exact(cache: LayerCache, query: Tensor, meta: AttentionMetadata) -> Tensor:
    doubled = LayerCache(cache.keys.double(), cache.values.double())
    return TorchBackend().attend(doubled, query.double(), _SPEC, meta)


if __name__ == "__main__":
    raise SystemExit(main())
