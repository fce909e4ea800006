"""`orcinus bench strategies`: the batching strategies and the naive baselines, in one engine, on one load.

One model is loaded and all strategies run on it in turn, several rounds, so that a machine that gets slower does so for
all of them. Instances of the model are processes of their own, held still by having nothing to do.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from orcinus.config.arguments import Parser, add_settings, settings_from
from orcinus.config.engine_config import EngineConfig
from orcinus.config.settings import Settings, SettingsError
from orcinus.config.version import VERSION
from orcinus.engine.core import Executor
from orcinus.engine.errors import OrcinusError
from orcinus.engine.messages import EngineInfo
from orcinus.engine.platform.device import limit_spinning
from orcinus.server.commands.strategies.instances import Instances
from orcinus.server.commands.strategies.load import Item, LoadShape, Traffic, make_load
from orcinus.server.commands.strategies.runs import (
    ENGINE_STRATEGIES,
    STRATEGIES,
    RunResult,
    Strategy,
    Timeline,
    run_strategy,
)
from orcinus.server.commands.strategies.table import Row, format_table, summarize
from orcinus.server.load.options import positive_number, whole_number
from orcinus.server.load.report import NO_MATPLOTLIB
from orcinus.server.process.logs import configure_logging

_DEFAULT_SLOTS = 16
_DEFAULT_PLOT = Path("strategies.png")
_WARM_UP_TOKENS = 8

_DESCRIPTION = """\
Compare the batching strategies in one engine, with one model, on one load: prompts have uniform lengths, outputs
exponential ones, and all requests arrive at once unless told otherwise. Prints a table of medians over the rounds and
draws a plot.
"""
_EPILOG = """\
strategies:
  continuous     a slot that becomes free is filled in the next step (what the server does)
  static         a group starts together, and the next one when all of it is done
  interleaved    as continuous, but each step computes one request
  sequential     one request after the other
  padded         static, with all prompts and answers of a group as long as the longest
  padded-sorted  the same, the shortest of the waiting prompts first
  instances      --instances processes with the model in each, one request at a time

columns:
  elapsed        until the last request is done
  tokens/s       output tokens over that time; padding is not counted
  vs ...         tokens/s over those of that strategy
  per 1M tokens  what a million output tokens cost at --price-per-hour; saved: of what they cost sequentially
  TTFT           time to first token, from arrival, queueing included
  e2e            time from arrival to the last token
  slots full     slots in use over slots there are, mean of the steps during which requests wait
  idle           share of slots times time in which a slot computed nothing or padding, the end of the run included

examples:
  orcinus bench strategies
  orcinus bench strategies --strategies continuous,padded,instances --users 1,4,16,64
  orcinus bench strategies --request-rate 20 --batch-wait-ms 500 --strategies continuous,static
  orcinus bench strategies --model ./my-model --rounds 5 --json strategies.json
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """Holds what all runs of one measurement share."""

    info: EngineInfo
    executor: Executor
    load: Sequence[Item]
    batch_wait_ms: float
    seed: int
    instances: Instances | None

    def run(self, strategy: Strategy, traffic: Traffic) -> tuple[RunResult, Timeline]:
        if strategy == "instances":
            assert self.instances is not None
            return self.instances.run(self.load, traffic, self.seed)
        return run_strategy(
            self.info,
            self.executor,
            strategy,
            self.load,
            batch_wait_ms=self.batch_wait_ms,
            traffic=traffic,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class Point:
    """Holds what was measured under one traffic."""

    traffic: Traffic
    rounds: list[list[RunResult]]
    timelines: Mapping[str, Timeline]

    @property
    def rows(self) -> list[Row]:
        return summarize(self.rounds)


def main(argv: Sequence[str]) -> int:
    args = _parser().parse(argv)
    settings = settings_from(args)
    configure_logging(settings)
    shape, traffics, plot_file = _shape(args, settings), _traffics(args), _plot_file(args)
    config = settings.model_copy(update={"max_num_seqs": settings.max_num_seqs or _DEFAULT_SLOTS}).engine_config()
    info, executor = _load_model(config)
    _check_fits(shape, info)
    load = make_load(shape, info.vocab_size)
    with _instances(config, args) as instances:
        bench = Bench(info, executor, load, settings.batch_wait_ms, shape.seed, instances)
        points = [_measure(bench, traffic, args) for traffic in traffics]
    heading = describe_run(settings.model_names[0], info, shape, args.rounds)
    print(f"{heading}\n\n{_tables(points, args.price_per_hour)}")
    if args.json is not None:
        args.json.write_text(json.dumps(_report(heading, shape, info, points), indent=2) + "\n", "utf-8")
    if plot_file is not None:
        _plot(points, heading, plot_file)
    return 0


def describe_run(model: str, info: EngineInfo, shape: LoadShape, num_rounds: int) -> str:
    """Return what was measured, on what, when: without this the numbers mean nothing."""
    return (
        f"{model} ({info.num_parameters / 1e6:.1f} M parameters, {info.dtype}) on {info.device}"
        f" ({info.device_name or platform.processor()}), orcinus {VERSION}, {datetime.now(UTC):%Y-%m-%d}\n"
        f"{shape.num_requests} requests, prompts {shape.prompt_min}..{shape.prompt_max}, outputs"
        f" exponential({shape.output_mean:g}) in {shape.output_min}..{shape.output_max} tokens,"
        f" {info.max_num_seqs} slots, {info.max_num_batched_tokens} tokens a step, seed {shape.seed},"
        f" {f'medians of {num_rounds} rounds' if num_rounds > 1 else 'one round'}"
    )


def _measure(bench: Bench, traffic: Traffic, args: argparse.Namespace) -> Point:
    """Run all rounds, and keep the timelines of the last one. Every round begins with another strategy."""
    from tqdm import tqdm

    timelines: dict[str, Timeline] = {}
    rounds: list[list[RunResult]] = []
    with tqdm(total=args.rounds * len(args.strategies), unit="run", file=sys.stderr) as progress:
        progress.set_description(f"{traffic.name}, warm-up")
        _warm_up(bench)
        for number in range(args.rounds):
            results = {}
            for strategy in _rotated(args.strategies, number):
                progress.set_description(f"{traffic.name}, round {number + 1}, {strategy}")
                results[strategy], timelines[strategy] = bench.run(strategy, traffic)
                progress.update(1)
            rounds.append([results[strategy] for strategy in args.strategies])
    return Point(traffic, rounds, timelines)


def _warm_up(bench: Bench) -> None:
    short = [Item(item.prompt_token_ids, min(item.num_output_tokens, _WARM_UP_TOKENS)) for item in bench.load]
    run_strategy(bench.info, bench.executor, "continuous", short, batch_wait_ms=bench.batch_wait_ms)


def _tables(points: Sequence[Point], price_per_hour: float | None) -> str:
    tables = [format_table(point.rows, price_per_hour) for point in points]
    return "\n\n".join(f"{point.traffic.name}:\n\n{table}" for point, table in zip(points, tables, strict=True))


def _plot(points: Sequence[Point], heading: str, file: Path) -> None:
    """Draw one plot for each traffic. The name of the first is `file` itself."""
    from orcinus.server.commands.strategies.plot import plot_strategies

    for number, point in enumerate(points):
        target = file.with_stem(f"{file.stem}-{number + 1}") if number else file
        plot_strategies(point.rows, point.timelines, f"{heading}\n{point.traffic.name}", target)
        print(f"\nThe plot ({point.traffic.name}) is in {target}")


def _rotated(strategies: Sequence[Strategy], by: int) -> list[Strategy]:
    start = by % len(strategies)
    return [*strategies[start:], *strategies[:start]]


def _load_model(config: EngineConfig) -> tuple[EngineInfo, Executor]:
    limit_spinning()
    from orcinus.engine.platform.lean_imports import import_transformers

    import_transformers()
    from orcinus.engine.startup.build import build_executor

    return build_executor(config)


@contextmanager
def _instances(config: EngineConfig, args: argparse.Namespace) -> Iterator[Instances | None]:
    if "instances" not in args.strategies:
        yield None
        return
    with Instances(config, args.instances) as instances:
        yield instances


def _check_fits(shape: LoadShape, info: EngineInfo) -> None:
    longest = shape.prompt_max + shape.output_max
    if longest > info.max_model_len:
        raise SettingsError(
            f"a request may have {shape.prompt_max} + {shape.output_max} tokens, but the model's context is"
            f" {info.max_model_len}"
        )


def _shape(args: argparse.Namespace, settings: Settings) -> LoadShape:
    shape = LoadShape(
        num_requests=args.requests,
        prompt_min=args.prompt_min,
        prompt_max=args.prompt_max,
        output_mean=args.output_mean,
        output_min=args.output_min,
        output_max=args.output_max,
        seed=settings.seed or 0,
    )
    if not 1 <= shape.prompt_min <= shape.prompt_max or not 1 <= shape.output_min <= shape.output_max:
        raise SettingsError("lengths must be at least 1, and no minimum above its maximum")
    if shape.num_requests < 1 or args.rounds < 1 or shape.output_mean <= 0:
        raise SettingsError("--requests and --rounds must be at least 1, --output-mean above 0")
    return shape


def _traffics(args: argparse.Namespace) -> list[Traffic]:
    if args.users and args.request_rate:
        raise SettingsError("--users and --request-rate are two kinds of traffic: give one of them")
    if args.users:
        return [Traffic(users=users) for users in args.users]
    return [Traffic(rate=args.request_rate)]


def _plot_file(args: argparse.Namespace) -> Path | None:
    """Return where to plot. Without matplotlib that is an error only if a plot was asked for."""
    if args.no_plot:
        return None
    if find_spec("matplotlib") is not None:
        return args.plot or _DEFAULT_PLOT
    if args.plot is not None:
        raise OrcinusError(NO_MATPLOTLIB)
    print(f"There will be no plot: {NO_MATPLOTLIB}", file=sys.stderr)
    return None


def _report(heading: str, shape: LoadShape, info: EngineInfo, points: Sequence[Point]) -> dict[str, Any]:
    return {
        "description": heading,
        "load": asdict(shape),
        "engine": msgspec.to_builtins(info),
        "traffic": [
            {
                "name": point.traffic.name,
                "medians": [asdict(row.run) | {"versus": row.versus} for row in point.rows],
                "rounds": [[asdict(run) for run in one_round] for one_round in point.rounds],
            }
            for point in points
        ],
    }


def _strategies(text: str) -> list[Strategy]:
    chosen = [strategy for strategy in STRATEGIES if strategy in text.split(",")]
    if len(chosen) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of {', '.join(STRATEGIES)}")
    return chosen


def _whole_numbers(text: str) -> list[int]:
    return [whole_number(part) for part in text.split(",")]


def _parser() -> Parser:
    parser = Parser("orcinus bench strategies", "[OPTIONS]", _DESCRIPTION, _EPILOG)
    load = parser.add_argument_group("Load")
    for name, kind, default, text in (
        ("requests", int, 64, "how many"),
        ("prompt-min", int, 32, "shortest prompt, in tokens"),
        ("prompt-max", int, 128, "longest prompt"),
        ("output-mean", float, 64.0, "mean of the exponential distribution of output lengths"),
        ("output-min", int, 8, "shortest output"),
        ("output-max", int, 256, "longest output"),
    ):
        load.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} [default: {default:g}]")
    load.add_argument(
        "--users",
        type=_whole_numbers,
        metavar="LIST",
        help="so many users, each with one request at a time",
    )
    load.add_argument(
        "--request-rate", type=positive_number, metavar="R", help="requests a second, as a Poisson process"
    )
    run = parser.add_argument_group("Run")
    run.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds over all strategies [default: 3]")
    run.add_argument(
        "--strategies",
        type=_strategies,
        default=list(ENGINE_STRATEGIES),
        metavar="LIST",
        help=f"which of {', '.join(STRATEGIES)} [default: {','.join(ENGINE_STRATEGIES)}]",
    )
    run.add_argument(
        "--instances", type=whole_number, default=4, metavar="N", help="processes with one model each [default: 4]"
    )
    run.add_argument(
        "--price-per-hour", type=positive_number, metavar="P", help="of the machine: say what a million tokens cost"
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    run.add_argument("--plot", type=Path, metavar="FILE", help=f"where to draw [default: {_DEFAULT_PLOT}]")
    run.add_argument("--no-plot", action="store_true", help="draw nothing")
    add_settings(
        parser,
        groups=("Model", "Engine", "General"),
        without=("replicas", "batching", "target_itl_ms", "target_ttft_ms", "served_model_name", "chat_template"),
    )
    return parser
