"""Every attention backend that a GPU has, on the same steps: how far from float64, and how long one layer takes.

    python -m bench.gpu_attention [--device cuda] [--dtype bfloat16]

Layers of several kinds over a cache of random numbers, in the blocks that each backend has by default. Times are the
least of several rounds. `launched` is with the launches; `replayed` is from a recording (CUDA graph) that was told of
sequences of 32,768 tokens, as start-up records steps for the longest ones. The last column is what reading the keys
and values alone takes at the bandwidth of a copy. Not yet run on a GPU; on a CPU it only tries itself out.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from orcinus.engine.attention.choice import LayerKind, choose_backend
from orcinus.engine.attention.interface import AttentionMetadata, AttentionSpec, LayerCache, LayerShape, batch_metadata
from orcinus.engine.attention.torch_backend import TorchBackend
from orcinus.engine.runner.cuda_graphs import CudaRecorder

_BLOCK_SIZES = (256, 16)
_RECORDED_LEN = 32_768
_ROUNDS, _REPEATS = 5, 20

PLAIN = LayerKind(16, LayerShape(8, 128, 128), AttentionSpec(128**-0.5))
# By what a kernel may do another way: how many heads share keys, how wide they are, and what bends the scores.
LAYERS = {
    "16/8 x 128": PLAIN,
    "32/4 x 128": LayerKind(32, LayerShape(4, 128, 128), AttentionSpec(128**-0.5)),
    "32/8 x 128, window 512": LayerKind(32, LayerShape(8, 128, 128), AttentionSpec(128**-0.5, window=512)),
    "8/4 x 256, softcap, window 512": LayerKind(
        8, LayerShape(4, 256, 256), AttentionSpec(1 / 16, window=512, softcap=50.0)
    ),
    "64/8 x 64, sinks": LayerKind(64, LayerShape(8, 64, 64), AttentionSpec(1 / 8, sinks=torch.zeros(64))),
    "8/1 x 512": LayerKind(8, LayerShape(1, 512, 512), AttentionSpec(1 / 16)),
}


@dataclass(frozen=True, slots=True)
class Load:
    """Names the positions that each sequence of a step computes."""

    name: str
    spans: list[tuple[int, int]]

    def num_keys(self, window: int | None) -> int:
        """Return how many keys the sequences see in all."""
        return sum(end - max(0, first + 1 - window) if window else end for first, end in self.spans)


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
_OF_OTHER_LAYERS = {"32 x 1024", "chunk of 512 after 3584", "2 x 64"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_attention", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only tries this script")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(attention_table(device, getattr(torch, options.dtype), copy_bandwidth(device)))
    return 0


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes a second that a large copy reads and writes."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / elapsed_s(lambda: target.copy_(source), device)


def elapsed_s(function: Callable[[], object], device: torch.device) -> float:
    """Return the least of several rounds, of one of several calls in a row."""
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
    """Return a table in markdown."""
    lines = [
        "| layer | step | attention | blocks | relative error | launched, µs | replayed, µs | KV read alone, µs |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, layer in LAYERS.items():
        own = on_device(layer, device)
        loads = [load for load in LOADS[device.type] if layer is PLAIN or load.name in _OF_OTHER_LAYERS]
        for load in loads:
            num_bytes = load.num_keys(layer.spec.window) * layer.shape.elements_per_token * dtype.itemsize
            read_us = 1e6 * num_bytes / bandwidth
            lines += [f"| {name} | {load.name} | {row} | {read_us:.1f} |" for row in rows_of(own, load, device, dtype)]
    return "\n".join(lines) + "\n"


def on_device(layer: LayerKind, device: torch.device) -> LayerKind:
    sinks = layer.spec.sinks
    return layer if sinks is None else replace(layer, spec=replace(layer.spec, sinks=sinks.to(device)))


def rows_of(layer: LayerKind, load: Load, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    for backend, block_size in backends(layer, device, dtype):
        cache, query, meta = step_of(load, layer, block_size, device, dtype)
        expected = exact(cache, query, layer.spec, meta)
        attend = partial(backend.attend, cache, query, layer.spec)
        got = attend(meta).double()
        error = float((got - expected).abs().max() / expected.abs().max())
        launched_us = 1e6 * elapsed_s(partial(attend, meta), device)
        replay = recorded(attend, meta, device) if type(backend) is not TorchBackend else None
        replayed = "–" if replay is None else f"{1e6 * elapsed_s(replay, device):.1f}"
        yield f"{backend.name} | {block_size} | {error:.1e} | {launched_us:.1f} | {replayed}"


def backends(layer: LayerKind, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[TorchBackend, int]]:
    """Yield those in place that are chosen for such a layer by the size of blocks, and gathering."""
    found: set[str] = set()
    for block_size in _BLOCK_SIZES:
        backend = choose_backend(device, dtype, [layer], block_size)
        if isinstance(backend, TorchBackend) and type(backend) is not TorchBackend and backend.name not in found:
            found.add(backend.name)
            yield backend, block_size
    yield TorchBackend(), _BLOCK_SIZES[-1]


def recorded(
    attend: Callable[[AttentionMetadata], Tensor], meta: AttentionMetadata, device: torch.device
) -> Callable[[], None] | None:
    """Return what replays a step of single tokens; None for steps with chunks, and where nothing can be recorded."""
    if device.type != "cuda" or meta.max_query_len > 1:
        return None
    longest = replace(meta, seq_lens=[_RECORDED_LEN] * meta.num_seqs, max_seq_len=_RECORDED_LEN, is_recorded=True)

    def run() -> None:
        attend(longest)

    return CudaRecorder()(run)


def step_of(
    load: Load, layer: LayerKind, block_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[LayerCache, Tensor, AttentionMetadata]:
    width = max(-(-end // block_size) for _, end in load.spans)
    count = width * len(load.spans)
    tables = np.random.default_rng(0).permutation(count).astype(np.int32).reshape(-1, width)
    cache = TorchBackend().allocate(layer.shape, count, block_size, dtype, device)
    for cached in (cache.keys, cache.values):
        cached.normal_()
    num_tokens = sum(end - first for first, end in load.spans)
    query = torch.randn(num_tokens, layer.num_heads, layer.shape.key_dim, device=device).to(dtype)
    return cache, query, batch_metadata(load.spans, tables, block_size, device)


def exact(cache: LayerCache, query: Tensor, spec: AttentionSpec, meta: AttentionMetadata) -> Tensor:
    doubled = LayerCache(cache.keys.double(), cache.values.double())
    return TorchBackend().attend(doubled, query.double(), spec, meta)


if __name__ == "__main__":
    raise SystemExit(main())
