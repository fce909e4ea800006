"""One command that compares this server with others that pip can install, on the same weights and requests.

    python -m bench.peers --shape qwen3-0.6b --arms orcinus,vllm,openvino,transformers --output report.md

Every arm is started once, warmed up with each load's number of streams, and held still (SIGSTOP) while another is
measured, so that one alone takes CPU; all must fit into memory together. In each round every load goes to all arms one
after the other, another one first each time, and to each after a short request that is not counted.
`--sampling`, repeated, measures each load with each of several ways to choose tokens.
`--request-rate` sends requests one by one at random times instead, for servers alone.
`--fresh` starts them anew in each round, for more than one measurement of the start.

An arm is orcinus, orcinus-loop (its engine without a server), vllm, openvino, llamacpp or transformers, with arguments
after a colon to compare one with itself: `orcinus:--no-enable-prefix-caching` takes those of `orcinus serve`,
`vllm:...` those of vLLM's server, and `openvino:--weight-format int8` those of OpenVINO's conversion. `NAME=VALUE`
among them is the environment of a server (`orcinus:OMP_WAIT_POLICY=PASSIVE`), for OpenVINO a property of its plugin or
of its scheduler (`openvino:KV_CACHE_PRECISION=bf16`, `openvino:max_num_batched_tokens=2048`), for llama.cpp a field of
its parameters (`llamacpp:n_ubatch=256`). No OMP_*, ORCINUS_* or VLLM_* variable of the shell reaches any arm. Peers are
installed when they are first asked for, in environments of their own under .venv-peers; vLLM's takes 3.5 GB, OpenVINO's
two 2 GB.

llama.cpp serves a GGUF file, which is written once: `llamacpp:GGUF=Q8_0` says of which type (BF16, Q8_0, Q4_0 or Q4_K;
Q4_0 without), `orcinus:GGUF=Q8_0` takes the same file, and `llamacpp:SERVER=/usr/local/bin/llama-server` has it served
by a llama.cpp that was built for the machine, in place of the wheel's.
"""

import argparse
import contextlib
import json
import platform
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.arms import Arm, Setting, parse_arms
from bench.peers.environments import ROOT
from bench.peers.figures import Start, Surroundings, Window, rotated, window_of
from bench.peers.loads import (
    Load,
    fixed_load,
    parse_rates,
    parse_sampling,
    parse_streams,
    poisson_load,
    sampled,
    skewed_load,
    wake_up_load,
    warm_up_of,
)
from bench.peers.machine import MemoryReader, describe_machine
from bench.peers.report import Comparison, format_report
from bench.peers.roofline import ModelBytes, ceiling_tokens_per_s, kv_bytes_per_token
from bench.peers.serving import RunningArm, free_port
from bench.random_model import SHAPES, write_model
from orcinus.engine.errors import OrcinusError
from orcinus.server.load.figures import parse_objectives, summarize
from orcinus.server.load.options import add_sampling_options, describe_sampling, sampling_fields
from orcinus.server.load.prompts import LoadItem

MODELS = ROOT / "out" / "peers"


@dataclass(slots=True)
class Bench:
    """One comparison under way: what is measured, and what has been so far."""

    arms: Sequence[Arm]
    loads: Sequence[Load]
    warm_ups: Sequence[Load]
    setting: Setting
    model: ModelBytes
    objectives_ms: Mapping[str, float]
    memory: MemoryReader = field(default_factory=MemoryReader)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)

    def measure(self, num_rounds: int, *, is_fresh: bool) -> None:
        """All rounds; with new processes in each of them where `is_fresh`."""
        if is_fresh:
            for number in range(num_rounds):
                self._measure_rounds([number])
        else:
            self._measure_rounds(range(num_rounds))

    def _measure_rounds(self, numbers: Sequence[int]) -> None:
        with contextlib.ExitStack() as stack:
            running = {arm.name: stack.enter_context(self._started(arm)) for arm in rotated(self.arms, numbers[0])}
            for number in numbers:
                for load in self.loads:
                    for arm in rotated(self.arms, number):
                        self._measure(running[arm.name], arm.name, load, number)

    @contextlib.contextmanager
    def _started(self, arm: Arm) -> Iterator[RunningArm]:
        """Started, warmed up and held still. Its start is counted when it is stopped, with all of its memory."""
        port = free_port()
        log = MODELS / f"{arm.file_name}.log"
        _say(f"starting {arm.name}")
        with RunningArm(arm.launch(self.setting, port), port, log) as running:
            self.facts[arm.name] = running.facts
            for load in self.warm_ups:
                running.run(load.items(self._vocab_size, arm.name), load)
            running.settle()
            running.hold()
            yield running
        self.starts.append(Start(arm=arm.name, startup_s=running.startup_s, peak_bytes=running.peak_bytes))

    def _measure(self, running: RunningArm, arm: str, load: Load, number: int) -> None:
        items = load.items(self._vocab_size, f"round {number}")
        bandwidth = self.memory.bandwidth_gb_per_s()
        running.resume()
        running.run(wake_up_load().items(self._vocab_size, f"round {number}, {load.name}"), wake_up_load())
        run, watch = running.run(items, load)
        running.hold()
        around = Surroundings(
            arm=arm,
            load=load.name,
            round=number,
            bandwidth_gb_per_s=bandwidth,
            arm_cores=watch.arm_cores,
            foreign_cores=watch.foreign_cores,
            ceiling_tokens_per_s=self._ceiling(items, load, bandwidth),
        )
        self.windows.append(window_of(run, summarize(run, self.objectives_ms), around))
        _say(f"round {number + 1}, {load.name}, {arm}: {self.windows[-1].tokens_per_s:.1f} tok/s")

    def _ceiling(self, items: Sequence[LoadItem], load: Load, bandwidth: float) -> float:
        lengths = [(item.prompt_tokens or 0, item.max_tokens) for item in items]
        return ceiling_tokens_per_s(self.model, lengths, load.max_concurrency, bandwidth)

    @property
    def _vocab_size(self) -> int:
        return int(self.setting.config["vocab_size"])


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the arms are stopped too
    try:
        comparison = compare(options)
    except OrcinusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = format_report(comparison)
    print(report)
    if options.output is not None:
        options.output.write_text(report)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(comparison), indent=1) + "\n")
    if options.plot is not None:
        from bench.peers.plots import plot_comparison

        plot_comparison(comparison, options.plot)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b", help="random weights like this model's")
    parser.add_argument("--model", type=Path, help="a directory in transformers' format, instead of --shape")
    parser.add_argument("--arms", type=parse_arms, default="orcinus,vllm,openvino,transformers", help="first: compared")
    parser.add_argument("--streams", type=parse_streams, help="one load for each number [default: 1,4,16,32]")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    add_sampling_options(parser)
    parser.add_argument(
        "--sampling",
        type=parse_sampling,
        action="append",
        metavar="FIELDS",
        help="each load once more, with temperature=1,top_p=0.95 instead of the three above (may be repeated)",
    )
    parser.add_argument("--skewed", action="store_true", help="a load more, of short and long answers")
    parser.add_argument("--skewed-requests", type=int, default=64)
    parser.add_argument("--skewed-slots", type=int, default=16)
    parser.add_argument(
        "--request-rate", type=parse_rates, default=[], help="a load for each: so many requests a second, one by one"
    )
    parser.add_argument("--requests", type=int, default=50, help="of each load with a rate [default: 50]")
    parser.add_argument("--seed", type=int, default=0, help="of their lengths and times [default: 0]")
    parser.add_argument("--goodput", type=parse_objectives, default="ttft:2000,tpot:120", help="objectives, in ms")
    parser.add_argument("--warm-up-tokens", type=int, default=16, help="of each answer of the warm-up")
    parser.add_argument("--kv-gib", type=int, default=2, help="every arm's KV cache [default: 2]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="start all arms anew in each round")
    parser.add_argument("--output", type=Path, help="write the report in Markdown to this file too")
    parser.add_argument("--json", type=Path, help="write all windows to this file")
    parser.add_argument("--plot", type=Path, help="draw to this file")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> Comparison:
    model = model_directory(options)
    loads = loads_of(options)
    open_loads = [load.name for load in loads if load.arrivals]
    drivers = [arm.name for arm in options.arms if not arm.kind.is_server]
    if open_loads and drivers:
        raise OrcinusError(f"--request-rate is for servers, and {', '.join(drivers)} is none: leave it out of --arms")
    alike = [arm.name for arm in options.arms if not arm.kind.takes_samplings]
    if alike and len(samplings_of(options)) > 1:
        raise OrcinusError(f"{', '.join(alike)} takes one --sampling for all requests: leave it out of --arms")
    for arm in options.arms:
        arm.install(model)
    slots = max(load.max_concurrency for load in loads)
    warm_ups = [warm_up_of(load, options.warm_up_tokens) for load in loads if load.name not in open_loads[1:]]
    setting = Setting(
        model=model,
        slots=slots,
        max_model_len=max(load.longest for load in [*loads, *warm_ups, wake_up_load()]),
        kv_gib=options.kv_gib,
    )
    bench = Bench(
        arms=options.arms,
        loads=loads,
        warm_ups=warm_ups,
        setting=setting,
        model=ModelBytes(weight_bytes(setting.model), kv_bytes_per_token(setting.config)),
        objectives_ms=options.goodput,
    )
    bench.measure(options.rounds, is_fresh=options.fresh)
    return Comparison(
        heading=f"{options.model.name if options.model else options.shape}: peers on a CPU",
        facts=_facts(bench, options.rounds, samplings_of(options)),
        arms=[arm.name for arm in options.arms],
        loads=[load.name for load in loads],
        windows=bench.windows,
        starts=bench.starts,
        open_loads=open_loads,
    )


def loads_of(options: argparse.Namespace) -> list[Load]:
    open_loads = [poisson_load(rate, options.requests, options.seed) for rate in options.request_rate]
    streams = options.streams or ([] if open_loads else [1, 4, 16, 32])
    loads = [fixed_load(number, options.prompt_tokens, options.output_tokens) for number in streams]
    if options.skewed:
        loads.append(skewed_load(options.skewed_requests, options.skewed_slots))
    return sampled(loads + open_loads, samplings_of(options))


def samplings_of(options: argparse.Namespace) -> list[dict[str, float]]:
    return options.sampling or [sampling_fields(options)]


def model_directory(options: argparse.Namespace) -> Path:
    """Random weights are written once and kept."""
    MODELS.mkdir(parents=True, exist_ok=True)
    if options.model is not None:
        return Path(options.model).resolve()  # the arms run elsewhere
    directory = MODELS / str(options.shape)
    if not (directory / "tokenizer.json").is_file():
        write_model(options.shape, directory)
    return directory


def weight_bytes(model: Path) -> int:
    """Of the files, which the shapes here read whole in each step: their embeddings are their output layer too."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def _facts(bench: Bench, num_rounds: int, samplings: Sequence[Mapping[str, float]]) -> list[str]:
    setting = bench.setting
    return [
        f"{time.strftime('%Y-%m-%d %H:%M')}, {describe_machine()}, Python {platform.python_version()}",
        f"`python -m bench.peers {shlex.join(sys.argv[1:])}`; {num_rounds} rounds",
        *(_describe(arm, bench.facts.get(arm.name, {})) for arm in bench.arms),
        f"{'; '.join(map(describe_sampling, samplings))}: the same for every arm",
        f"weights {bench.model.weights / 1e9:.2f} GB, cache {bench.model.kv_per_token} bytes a token; every arm has "
        f"{setting.slots} slots, {setting.kv_gib} GiB of cache and a context of {setting.max_model_len} tokens",
    ]


def _describe(arm: Arm, facts: dict[str, Any]) -> str:
    return "; ".join([f"{arm.name}: {arm.kind.version}", *(f"{name} {value}" for name, value in facts.items())])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
