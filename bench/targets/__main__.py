"""One command that measures what tables of throughput do not show, and says whether it is enough.

    python -m bench.targets --output targets.md --json targets.json
    python -m bench.targets --arguments "--quantization=int8" --only latency,prefix

On random weights in Qwen3-0.6B's shape, or on `--model`, in these parts:

latency: the time between two tokens of streams that decode, alone and then while prompts arrive one after the other;
         also the share of the roofline at which they decode alone.
prefix:  the time to the first token of a prompt, cold and with its prefix shared by an earlier request.
http:    output tokens a second over HTTP against the engine loop alone, in a process of its own; each is held still
         (SIGSTOP) while the other is measured, and they take turns.
memory:  the most memory of all processes together, with the whole cache in use, what they share counted once.
ready:   from the command to the first 200 of /health.
"""

import argparse
import contextlib
import json
import platform
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.peers.__main__ import MODELS, model_directory, weight_bytes
from bench.peers.arms import Arm, Setting, parse_arms
from bench.peers.loads import Load, fixed_load, random_writer, sampled, wake_up_load, warm_up_of
from bench.peers.machine import MemoryReader, Watch, describe_machine
from bench.peers.roofline import ModelBytes, ceiling_tokens_per_s, kv_bytes_per_token
from bench.peers.serving import RunningArm, free_port
from bench.random_model import SHAPES
from bench.startup import time_to_ready
from bench.targets.figures import Row, latency_within, lengths_within
from bench.targets.interference import Interference, decode_beside_prompts
from bench.targets.report import as_data, format_targets
from orcinus.engine.errors import OrcinusError
from orcinus.server.load.answers import RequestRecord
from orcinus.server.load.figures import summarize
from orcinus.server.load.lengths import parse_lengths
from orcinus.server.load.options import add_sampling_options, describe_sampling, sampling_fields
from orcinus.server.load.prompts import LoadItem, PromptShape, random_items
from orcinus.server.load.run import LoadRun
from orcinus.server.load.session import run_on_fast_loop

MOST_P99_OVER_MEDIAN = 2.0
MOST_SHARED_OVER_COLD = 0.10
LEAST_HTTP_OVER_LOOP = 0.95
MOST_MEMORY_BESIDES_BYTES = 600e6
MOST_READY_S = 5.0

_CONTEXT = 4096
_STREAM_PROMPT = 32
_SUFFIX = 16
_MEMORY_KV_GIB = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Says what is measured and how it is asked for; every part needs it."""

    setting: Setting
    server: Arm
    loop: Arm
    options: argparse.Namespace

    @property
    def vocab_size(self) -> int:
        return int(self.setting.config["vocab_size"])

    @property
    def sampling(self) -> Mapping[str, float]:
        return sampling_fields(self.options)

    def load(self, num_requests: int, prompt_tokens: int, output_tokens: int) -> Load:
        [load] = sampled([fixed_load(num_requests, prompt_tokens, output_tokens)], [self.sampling])
        return load

    @contextlib.contextmanager
    def running(self, arm: Arm, setting: Setting | None = None) -> Iterator[tuple[RunningArm, str]]:
        """A fresh one, and its address."""
        port = free_port()
        launch = arm.launch(setting or self.setting, port)
        with RunningArm(launch, port, MODELS / f"targets-{arm.file_name}.log") as running:
            yield running, f"http://127.0.0.1:{port}"

    def warm_up(self, running: RunningArm, load: Load) -> None:
        warm_up = warm_up_of(load, output_tokens=8)
        running.run(warm_up.items(self.vocab_size, ""), warm_up)

    def wake(self, running: RunningArm, content: str) -> None:
        running.run(wake_up_load().items(self.vocab_size, content), wake_up_load())


def measure_latency(place: Place) -> list[Row]:
    options = place.options
    streams = place.load(options.streams, _STREAM_PROMPT, place.setting.max_model_len - _STREAM_PROMPT)
    prompts = place.load(options.prompts, options.prompt_tokens, 16)
    memory = MemoryReader()
    with place.running(place.server) as (running, url):
        place.warm_up(running, streams)
        place.warm_up(running, place.load(1, options.prompt_tokens, 16))
        running.hold()
        bandwidth = memory.bandwidth_gb_per_s()
        running.resume()
        place.wake(running, "latency")
        with Watch(running.process) as watch:
            seen = run_on_fast_loop(
                decode_beside_prompts(
                    url,
                    streams.items(place.vocab_size, "streams"),
                    prompts.items(place.vocab_size, "prompts"),
                    alone_s=options.alone_s,
                    every_s=options.every_s,
                    sampling=place.sampling,
                )
            )
    model = ModelBytes(weight_bytes(place.setting.model), kv_bytes_per_token(place.setting.config))
    others = watch.foreign_cores
    return [*latency_rows(seen, others), *roofline_rows(seen, _STREAM_PROMPT, model, bandwidth, others)]


def latency_rows(seen: Interference, foreign_cores: float) -> list[Row]:
    row = partial(Row, foreign_cores=foreign_cores)
    alone, beside = (latency_within(seen.streams, window) for window in (seen.alone, seen.with_prompts))
    ttft_s = statistics.median(record.ttft_s or 0.0 for record in seen.prompts)
    rows = []
    for when, latency in ((f"{len(seen.streams)} streams alone", alone), ("the same while prompts arrive", beside)):
        rows += [
            row(name=f"inter-token latency of {when}, median", value=latency.p50_ms, unit="ms"),
            row(name=f"inter-token latency of {when}, p99", value=latency.p99_ms, unit="ms"),
            row(name=f"inter-token latency of {when}, longest", value=latency.max_ms, unit="ms"),
        ]
    return [
        *rows,
        row(
            name="p99 while prompts arrive over the median while they do",
            value=beside.p99_ms / beside.p50_ms,
            unit="x",
            limit=MOST_P99_OVER_MEDIAN,
        ),
        row(name="the same p99 over the median without prompts", value=beside.p99_ms / alone.p50_ms, unit="x"),
        row(name="time to first token of those prompts, median", value=1000 * ttft_s, unit="ms"),
    ]


def roofline_rows(
    seen: Interference, prompt_tokens: int, model: ModelBytes, bandwidth: float, foreign_cores: float
) -> list[Row]:
    row = partial(Row, foreign_cores=foreign_cores)
    lengths = lengths_within(seen.streams, prompt_tokens, seen.alone)
    tokens_per_s = sum(tokens for _, tokens in lengths) / (seen.alone.end_s - seen.alone.start_s)
    ceiling = ceiling_tokens_per_s(model, lengths, len(lengths), bandwidth)
    return [
        row(name=f"decoding, {len(lengths)} streams", value=tokens_per_s, unit="tok/s"),
        row(name=f"share of the roofline in 16 bits at {bandwidth:.1f} GB/s", value=tokens_per_s / ceiling, unit="%"),
    ]


def measure_prefix(place: Place) -> list[Row]:
    tokens = place.options.prompt_tokens
    with place.running(place.server) as (running, _):
        place.warm_up(running, place.load(1, tokens, 2))
        place.wake(running, "prefix")
        run, watch = running.run(prefix_pairs(place.vocab_size, tokens, place.options.pairs), place.load(1, tokens, 2))
    cold, shared = _checked(run)[0::2], run.records[1::2]
    cold_ms, shared_ms = (1000 * statistics.median(r.ttft_s or 0.0 for r in half) for half in (cold, shared))
    row = partial(Row, foreign_cores=watch.foreign_cores)
    return [
        row(name=f"first token of {tokens + _SUFFIX} tokens, cold, median of {len(cold)}", value=cold_ms, unit="ms"),
        row(name=f"first token where {tokens} of them are shared", value=shared_ms, unit="ms"),
        row(
            name=f"shared over cold ({_cached(shared)} tokens came from the cache, cold {_cached(cold)})",
            value=shared_ms / cold_ms,
            unit="%",
            limit=MOST_SHARED_OVER_COLD,
        ),
    ]


def prefix_pairs(vocab_size: int, prefix_tokens: int, num_pairs: int) -> list[LoadItem]:
    """Twice the same prefix with another end, then another prefix."""
    shape = PromptShape(
        prompt_tokens=parse_lengths(str(_SUFFIX)), output_tokens=parse_lengths("2"), shared_prefix_tokens=prefix_tokens
    )
    writer = random_writer(vocab_size)
    return [item for pair in range(num_pairs) for item in random_items(shape, writer, 2, f"pair {pair}")]


def _cached(records: list[RequestRecord]) -> float:
    return statistics.median(record.cached_tokens or 0 for record in records)


def measure_http(place: Place) -> list[Row]:
    load = place.load(place.options.http_streams, 128, place.options.output_tokens)
    speeds: dict[str, list[float]] = {"server": [], "loop": []}
    foreign_cores = 0.0
    with place.running(place.server) as (server, _), place.running(place.loop) as (loop, _):
        arms = {"server": server, "loop": loop}
        for running in arms.values():
            running.resume()
            place.warm_up(running, load)
            running.hold()
        for number in range(place.options.rounds):
            for name in sorted(arms, reverse=number % 2 == 0):
                speed, others = _speed(place, arms[name], load, f"round {number}")
                speeds[name].append(speed)
                foreign_cores = max(foreign_cores, others)
    ratios = [served / alone for served, alone in zip(speeds["server"], speeds["loop"], strict=True)]
    row = partial(Row, foreign_cores=foreign_cores)
    return [
        row(name=f"{load.name} over HTTP, median", value=statistics.median(speeds["server"]), unit="tok/s"),
        row(name="the engine loop alone, median", value=statistics.median(speeds["loop"]), unit="tok/s"),
        row(
            name=f"over HTTP of the loop, median of rounds ({min(ratios):.1%} to {max(ratios):.1%})",
            value=statistics.median(ratios),
            unit="%",
            limit=LEAST_HTTP_OVER_LOOP,
            bound="at least",
        ),
    ]


def _speed(place: Place, running: RunningArm, load: Load, content: str) -> tuple[float, float]:
    running.resume()
    place.wake(running, content)
    run, watch = running.run(load.items(place.vocab_size, content), load)
    running.hold()
    _checked(run)
    return summarize(run, {}).output_tokens_per_s, watch.foreign_cores


def measure_memory(place: Place) -> list[Row]:
    """With a small cache, so that a short load uses all of it: what is allocated and not used is not resident."""
    setting = replace(place.setting, kv_gib=_MEMORY_KV_GIB)
    load = place.load(-(-setting.kv_tokens // place.options.prompt_tokens), place.options.prompt_tokens, 16)
    with place.running(place.loop, setting) as (loop, _):
        weights, cache = int(loop.facts["weight bytes"]), int(loop.facts["cache bytes"])
    with place.running(place.server, setting) as (running, _):
        running.hold()
        peak_until_ready = running.peak_bytes
        running.resume()
        run, watch = running.run(load.items(place.vocab_size, "memory"), load)
        running.hold()
    _checked(run)
    row = partial(Row, unit="MB", foreign_cores=watch.foreign_cores)
    return [
        row(name="weights", value=weights / 1e6),
        row(name="KV cache", value=cache / 1e6),
        row(name="most memory of all processes together until ready", value=peak_until_ready / 1e6),
        row(
            name="the same until the whole cache was used",
            value=running.peak_bytes / 1e6,
            limit=(weights + cache + MOST_MEMORY_BESIDES_BYTES) / 1e6,
        ),
    ]


def measure_ready(place: Place) -> list[Row]:
    launch = partial(place.server.launch, place.setting)
    time_to_ready(launch)  # reads the files
    times = []
    foreign_cores = 0.0
    for _ in range(place.options.starts):
        seconds, others = time_to_ready(launch)
        times.append(seconds)
        foreign_cores = max(foreign_cores, others)
    name = f"ready, median of {len(times)} starts ({min(times):.2f} to {max(times):.2f} s)"
    return [
        Row(name=name, value=statistics.median(times), unit="s", limit=MOST_READY_S, foreign_cores=foreign_cores),
    ]


PARTS: dict[str, Callable[[Place], list[Row]]] = {
    "latency": measure_latency,
    "prefix": measure_prefix,
    "http": measure_http,
    "memory": measure_memory,
    "ready": measure_ready,
}


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped too
    try:
        place = place_of(options)
        rows = [row for part in options.only for row in _measured(part, place)]
    except OrcinusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    heading = f"{place.setting.model.name}: targets on a CPU"
    facts = _facts(place)
    report = format_targets(heading, facts, rows)
    print(report)
    if options.output is not None:
        options.output.write_text(report)
    if options.json is not None:
        options.json.write_text(json.dumps(as_data(heading, facts, rows), indent=1) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.targets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b", help="random weights like this model's")
    parser.add_argument("--model", type=Path, help="a directory in transformers' format, instead of --shape")
    parser.add_argument("--arguments", default="", help="for `orcinus serve`, and for the loop alone, in one string")
    parser.add_argument("--only", type=parse_parts, default=",".join(PARTS), help="parts, with commas [default: all]")
    parser.add_argument("--kv-gib", type=int, default=4, help="the KV cache, but for the part memory [default: 4]")
    parser.add_argument("--prompt-tokens", type=int, default=1000, help="of the long prompts [default: 1000]")
    parser.add_argument("--streams", type=int, default=16, help="that decode while prompts arrive [default: 16]")
    parser.add_argument("--prompts", type=int, default=10, help="how many arrive [default: 10]")
    parser.add_argument("--every-s", type=float, default=2.0, help="seconds between two of them [default: 2]")
    parser.add_argument("--alone-s", type=float, default=10.0, help="seconds before the first of them [default: 10]")
    parser.add_argument("--pairs", type=int, default=5, help="of a cold and a shared prompt [default: 5]")
    add_sampling_options(parser)
    parser.add_argument("--http-streams", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=128, help="of each of the HTTP streams [default: 128]")
    parser.add_argument("--rounds", type=int, default=5, help="of the part http [default: 5]")
    parser.add_argument("--starts", type=int, default=5, help="of the part ready, after one more [default: 5]")
    parser.add_argument("--output", type=Path, help="write the table in Markdown to this file too")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    return parser.parse_args()


def parse_parts(text: str) -> list[str]:
    """`latency,ready` as names of parts. Raises `ArgumentTypeError`."""
    parts = text.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no part; there are {', '.join(PARTS)}")
    return parts


def place_of(options: argparse.Namespace) -> Place:
    setting = Setting(
        model=model_directory(options),
        slots=max(options.http_streams, options.streams + options.prompts),
        max_model_len=_CONTEXT,
        kv_gib=options.kv_gib,
    )
    arguments = f":{options.arguments}" if options.arguments else ""
    [server] = parse_arms(f"orcinus{arguments}")
    [loop] = parse_arms(f"orcinus-loop{arguments}")
    return Place(setting, server, loop, options)


def _measured(part: str, place: Place) -> list[Row]:
    print(f"measuring {part}", file=sys.stderr, flush=True)
    return PARTS[part](place)


def _facts(place: Place) -> list[str]:
    return [
        f"{time.strftime('%Y-%m-%d %H:%M')}, {describe_machine()}, Python {platform.python_version()}",
        f"`python -m bench.targets {shlex.join(sys.argv[1:])}`; {place.server.kind.version}",
        describe_sampling(place.sampling),
        f"{place.setting.slots} slots, a context of {_CONTEXT} tokens, {place.setting.kv_gib} GiB of cache "
        f"({_MEMORY_KV_GIB} GiB where memory is measured), random prompts that do not come again",
    ]


def _checked(run: LoadRun) -> list[RequestRecord]:
    """The records. Raises `OrcinusError` where a request failed or had fewer tokens than it was asked for."""
    for record in run.records:
        if record.failure is not None or record.output_tokens != record.asked_output_tokens:
            raise OrcinusError(
                f"a request had {record.output_tokens} of {record.asked_output_tokens} tokens: {record.error}"
            )
    return run.records


if __name__ == "__main__":
    raise SystemExit(main())
