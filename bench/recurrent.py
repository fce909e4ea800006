"""What the native kernels of recurrent layers are worth: the convolution and the gated delta rule of a layer, no more.

    OMP_NUM_THREADS=1 python -m bench.recurrent [--singles 1,4,16,32] [--chunks 128,512] [--rounds 9] [--cpu-time]

A layer is like those of Qwen3.5 0.8B: 16 heads of 128 by 128, and 6144 channels of 4 taps. Every round runs all layers,
each with states of its own, over so many sequences of one token, or over one sequence of so many tokens: by our
kernels, and by the functions of transformers in torch, which take single tokens in a batch. Medians over the rounds, in
milliseconds a layer, on the clock or of processor time. Random numbers in bfloat16.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

from orcinus.engine.kernels.library import Library, load_library
from orcinus.engine.platform.device import device_name
from orcinus.engine.recurrent.native_scans import NativeScans

HEADS, DIM, TAPS = 16, 128, 4
CHANNELS = 3 * HEADS * DIM


@dataclass(frozen=True, slots=True)
class Segments:
    """The sequences of a step; the protocol of `native_scans`."""

    starts: Tensor
    slots: Tensor
    is_new: Tensor

    @staticmethod
    def of(num_seqs: int, length: int) -> "Segments":
        starts = torch.arange(num_seqs + 1, dtype=torch.int32) * length
        return Segments(starts, torch.arange(num_seqs), torch.zeros(num_seqs, dtype=torch.bool))


class Layer:
    """Inputs of a step and states of one layer: of so many sequences, of so many tokens each."""

    def __init__(self, num_seqs: int, length: int) -> None:
        self.num_seqs, self.length = num_seqs, length
        self.projected = torch.randn(num_seqs, length, CHANNELS).bfloat16()
        self.weight = torch.randn(CHANNELS, TAPS).bfloat16() / 2
        self.decay = -torch.rand(num_seqs, length, HEADS)
        self.beta = torch.rand(num_seqs, length, HEADS).bfloat16()
        self.last_inputs = torch.randn(num_seqs, TAPS - 1, CHANNELS).bfloat16()
        self.state = torch.randn(num_seqs, HEADS, DIM, DIM)
        self.segments = Segments.of(num_seqs, length)

    def native_convolution(self, scans: NativeScans) -> Tensor:
        x = self.projected.view(1, -1, CHANNELS).transpose(1, 2)
        return scans.convolve(x, self.weight, None, "silu", states=self.last_inputs, segments=self.segments)

    def native_rule(self, scans: NativeScans) -> Tensor:
        query, key, value = heads_of(self.projected.view(1, -1, CHANNELS))
        decay, beta = self.decay.view(1, -1, HEADS), self.beta.view(1, -1, HEADS)
        return scans.delta_rule(
            query, key, value, decay=decay, beta=beta, normalized=True, states=self.state, segments=self.segments
        )

    def torch_convolution(self) -> Tensor:
        """As a layer does with a cache."""
        x, earlier = self.projected.transpose(1, 2), self.last_inputs.transpose(1, 2)
        if self.length == 1:
            out: Tensor = theirs.causal_conv1d_update(x, earlier, self.weight, None, "silu")
            return out
        out = theirs.causal_conv1d_fn(torch.cat([earlier, x], dim=2), self.weight, None, activation="silu")
        return out[:, :, -self.length :]

    def torch_rule(self) -> Tensor:
        query, key, value = heads_of(self.projected)
        rule = theirs.torch_recurrent_gated_delta_rule if self.length == 1 else theirs.torch_chunk_gated_delta_rule
        out, state = rule(
            query,
            key,
            value,
            g=self.decay,
            beta=self.beta,
            initial_state=self.state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        self.state = state.contiguous()
        return out


def heads_of(projected: Tensor) -> list[Tensor]:
    return [part.unflatten(2, (HEADS, DIM)) for part in projected.chunk(3, dim=2)]


@torch.inference_mode()
def main() -> int:
    options = parse_arguments()
    library = load_library()
    if library is None:
        print("there are no native kernels here")
        return 1
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    library.use_threads(options.threads, own=True)
    print(f"{device_name(torch.device('cpu'))}, {options.threads} threads, torch {torch.__version__}")
    print("| step | convolution, ms | by torch | delta rule, ms | by torch |\n|---|---:|---:|---:|---:|")
    steps = [(count, 1) for count in options.singles] + [(1, length) for length in options.chunks]
    for num_seqs, length in steps:
        name = f"{num_seqs} of one token" if length == 1 else f"{length} tokens of one"
        layers = [Layer(num_seqs, length) for _ in range(options.layers)]
        print(f"| {name} | " + " | ".join(compare(layers, library, options)) + " |", flush=True)
    return 0


def parse_arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    parser = argparse.ArgumentParser(prog="python -m bench.recurrent", description=__doc__)
    parser.add_argument("--singles", type=numbers, default=[1, 4, 16, 32])
    parser.add_argument("--chunks", type=numbers, default=[128, 512])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, of all threads together")
    return parser.parse_args()


def compare(layers: Sequence[Layer], library: Library, options: argparse.Namespace) -> list[str]:
    """Return a cell for each way, of milliseconds a layer. The first round does not count."""
    scans = NativeScans(library)
    ways: list[Callable[[Layer], object]] = [
        lambda layer: layer.native_convolution(scans),
        Layer.torch_convolution,
        lambda layer: layer.native_rule(scans),
        Layer.torch_rule,
    ]
    clock = time.process_time if options.cpu_time else time.perf_counter
    times = [[milliseconds(way, layers, clock) for way in ways] for _ in range(options.rounds + 1)][1:]
    return [f"{statistics.median(measured):.3f}" for measured in zip(*times, strict=True)]


def milliseconds(way: Callable[[Layer], object], layers: Sequence[Layer], clock: Callable[[], float]) -> float:
    started = clock()
    for layer in layers:
        way(layer)
    return (clock() - started) * 1e3 / len(layers)


if __name__ == "__main__":
    raise SystemExit(main())
