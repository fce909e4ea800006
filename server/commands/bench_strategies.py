"""`orcinus bench strategies`: the batching strategies, in one engine, on one load of uneven lengths.

All requests arrive at once, so that throughput is that of a full queue and its tail. One model is loaded and all
strategies run on it in turn, several rounds, so that a machine that gets slower does so for all of them.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from orcinus.config.arguments import Parser, add_settings, settings_from
from orcinus.config.engine_config import BatchingStrategy
from orcinus.config.settings import Settings, SettingsError
from orcinus.config.version import VERSION
from orcinus.engine.core import EngineCore, Executor
from orcinus.engine.errors import OrcinusError
from orcinus.engine.messages import AddRequest, EngineInfo, Fault, StepPlan, StepResult
from orcinus.engine.platform.device import limit_spinning
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.scheduler import Scheduler
from orcinus.server.load.report import NO_MATPLOTLIB, markdown_table, percentile
from orcinus.server.process.logs import configure_logging

if TYPE_CHECKING:
    from orcinus.engine.platform.device import DeviceMonitor

STRATEGIES: tuple[BatchingStrategy, ...] = get_args(BatchingStrategy)
_BASELINE: BatchingStrategy = "static"
_DEFAULT_SLOTS = 16
_DEFAULT_PLOT = Path("strategies.png")
_WARM_UP_TOKENS = 8

_DESCRIPTION = """\
Compare the batching strategies in one engine, with one model, on one load: all requests arrive at once, prompts
have uniform lengths, outputs exponential ones. Prints a table of medians over the rounds and draws a plot.
"""
_EPILOG = """\
columns:
  tokens/s    output tokens over the time until the last request is done
  TTFT        time to first token, from arrival, queueing included
  e2e         time from arrival to the last token
  slots full  slots in use over slots there are, mean of the steps during which requests wait
  idle        share of slots times time in which a slot computed nothing, the end of the run included

examples:
  orcinus bench strategies
  orcinus bench strategies --model ./my-model --rounds 5 --json strategies.json
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShape:
    """How many requests of which lengths, in tokens."""

    num_requests: int
    prompt_min: int
    prompt_max: int
    output_mean: float
    output_min: int
    output_max: int
    seed: int


@dataclass(frozen=True, slots=True)
class Item:
    prompt_token_ids: list[int]
    num_output_tokens: int


@dataclass(slots=True)
class Recorder:
    """An executor that notes, of each step, how the slots stand while it runs: after the refill."""

    executor: Executor
    scheduler: Scheduler | None = None
    steps: list["StepRecord"] = field(default_factory=list)
    device_monitor: "DeviceMonitor | None" = None

    @property
    def runs_ahead(self) -> bool:
        return self.executor.runs_ahead

    def prepare(self, sampling: SamplingParams) -> Future[Any] | None:
        return self.executor.prepare(sampling)

    def diagnose(self, error: Exception) -> Fault:
        return self.executor.diagnose(error)

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        assert self.scheduler is not None, "the recorder belongs to no core yet"
        started = time.monotonic()
        running, waiting = self.scheduler.num_running, self.scheduler.num_waiting
        result = self.executor.launch(plan)

        def wait() -> StepResult:
            waited_for = result()
            self.steps.append(StepRecord(started, time.monotonic() - started, len(plan.scheduled), running, waiting))
            return waited_for

        return wait


@dataclass(frozen=True, slots=True)
class StepRecord:
    started: float
    duration_s: float
    num_scheduled: int
    num_running: int
    num_waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One strategy's run over the load, in numbers. Times are in seconds."""

    strategy: str
    num_requests: int
    num_slots: int
    num_steps: int
    elapsed_s: float
    output_tokens_per_s: float
    mean_ttft_s: float
    p99_ttft_s: float
    mean_e2e_s: float
    slots_full: float | None  # None where no step ran while requests waited
    idle: float
    vs_static: float | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """For the plot: when each step began, and how many slots computed in it."""

    times_s: list[float]
    busy_slots: list[int]
    end_s: float


def make_load(shape: LoadShape, vocab_size: int) -> list[Item]:
    """The requests of a load: the same ones for the same shape, whatever the machine."""
    rng = random.Random(shape.seed)  # noqa: S311 - a load, not a secret
    return [
        Item(
            [rng.randrange(vocab_size) for _ in range(rng.randint(shape.prompt_min, shape.prompt_max))],
            min(max(round(rng.expovariate(1 / shape.output_mean)), shape.output_min), shape.output_max),
        )
        for _ in range(shape.num_requests)
    ]


def run_strategy(
    info: EngineInfo, executor: Executor, strategy: BatchingStrategy, load: Sequence[Item], batch_wait_ms: float
) -> tuple[RunResult, Timeline]:
    """Run the whole load under `strategy` on the real clock. Raises `OrcinusError` if a request fails."""
    recorder = Recorder(executor)
    core = EngineCore(msgspec.structs.replace(info, batching=strategy), recorder, batch_wait_ms=batch_wait_ms)
    recorder.scheduler = core.scheduler
    started = time.monotonic()
    for index, item in enumerate(load):
        core.add_request(_request(f"{strategy}-{started}-{index}", item, started))
    first, last, num_tokens = _drive(core)
    num_slots = core.scheduler.num_slots
    elapsed = max(last.values()) - started
    result = RunResult(
        strategy=strategy,
        num_requests=len(load),
        num_slots=num_slots,
        num_steps=len(recorder.steps),
        elapsed_s=elapsed,
        output_tokens_per_s=num_tokens / elapsed,
        mean_ttft_s=statistics.fmean(time - started for time in first.values()),
        p99_ttft_s=percentile([time - started for time in first.values()], 99),
        mean_e2e_s=statistics.fmean(time - started for time in last.values()),
        slots_full=_slots_full(recorder.steps, num_slots),
        idle=1 - sum(s.num_scheduled * s.duration_s for s in recorder.steps) / (info.max_num_seqs * elapsed),
    )
    busy = [step.num_scheduled for step in recorder.steps]
    return result, Timeline([step.started - started for step in recorder.steps], busy, elapsed)


def summarize(rounds: Sequence[Sequence[RunResult]]) -> list[RunResult]:
    """The medians over the rounds, strategy by strategy; ratios are taken inside a round."""
    medians = []
    for strategy in dict.fromkeys(run.strategy for runs in rounds for run in runs):
        runs = [run for one_round in rounds for run in one_round if run.strategy == strategy]
        baselines = [run for one_round in rounds for run in one_round if run.strategy == _BASELINE]
        ratios = [
            run.output_tokens_per_s / base.output_tokens_per_s for run, base in zip(runs, baselines, strict=False)
        ]
        medians.append(_median_run(runs, statistics.median(ratios) if ratios else None))
    return medians


def format_table(runs: Sequence[RunResult]) -> str:
    """The table that is printed, in Markdown, so that it can be pasted into a document."""
    columns: dict[str, Callable[[RunResult], str]] = {
        "strategy": lambda run: run.strategy,
        "requests": lambda run: f"{run.num_requests}",
        "tokens/s": lambda run: f"{run.output_tokens_per_s:.1f}",
        "vs static": lambda run: "–" if run.vs_static is None else f"{run.vs_static:.2f}x",
        "TTFT mean": lambda run: f"{run.mean_ttft_s:.2f} s",
        "TTFT p99": lambda run: f"{run.p99_ttft_s:.2f} s",
        "e2e mean": lambda run: f"{run.mean_e2e_s:.2f} s",
        "slots": lambda run: f"{run.num_slots}",
        "slots full": lambda run: "–" if run.slots_full is None else f"{run.slots_full:.1%}",
        "idle": lambda run: f"{run.idle:.1%}",
        "steps": lambda run: f"{run.num_steps}",
    }
    return markdown_table([list(columns), *([show(run) for show in columns.values()] for run in runs)])


def main(argv: Sequence[str]) -> int:
    args = _parser().parse(argv)
    settings = settings_from(args)
    configure_logging(settings)
    shape = _shape(args, settings)
    plot_file = _plot_file(args)
    info, executor = _load_model(settings)
    load = make_load(shape, info.vocab_size)
    _check_fits(shape, info)
    rounds, timelines = _measure(info, executor, load, args, settings.batch_wait_ms)
    runs = summarize(rounds)
    heading = describe_run(settings.model_names[0], info, shape, args.rounds)
    print(f"{heading}\n\n{format_table(runs)}")
    if args.json is not None:
        args.json.write_text(json.dumps(_report(heading, shape, info, runs, rounds), indent=2) + "\n", "utf-8")
    if plot_file is not None:
        from orcinus.server.commands.strategies_plot import plot_strategies

        plot_strategies(runs, timelines, heading, plot_file)
        print(f"\nThe plot is in {plot_file}")
    return 0


def describe_run(model: str, info: EngineInfo, shape: LoadShape, num_rounds: int) -> str:
    """What was measured, on what, when: without this the numbers mean nothing."""
    return (
        f"{model} ({info.num_parameters / 1e6:.1f} M parameters, {info.dtype}) on {info.device}"
        f" ({info.device_name or platform.processor()}), orcinus {VERSION}, {datetime.now(UTC):%Y-%m-%d}\n"
        f"{shape.num_requests} requests at once, prompts {shape.prompt_min}..{shape.prompt_max}, outputs"
        f" exponential({shape.output_mean:g}) in {shape.output_min}..{shape.output_max} tokens,"
        f" {info.max_num_seqs} slots, {info.max_num_batched_tokens} tokens a step, seed {shape.seed},"
        f" {f'medians of {num_rounds} rounds' if num_rounds > 1 else 'one round'}"
    )


def _measure(
    info: EngineInfo, executor: Executor, load: Sequence[Item], args: argparse.Namespace, batch_wait_ms: float
) -> tuple[list[list[RunResult]], dict[str, Timeline]]:
    """All rounds, and the timelines of the last one. Every round begins with another strategy."""
    from tqdm import tqdm

    timelines: dict[str, Timeline] = {}
    rounds: list[list[RunResult]] = []
    with tqdm(total=args.rounds * len(args.strategies), unit="run", file=sys.stderr) as progress:
        progress.set_description("warm-up")
        short = [Item(item.prompt_token_ids, min(item.num_output_tokens, _WARM_UP_TOKENS)) for item in load]
        run_strategy(info, executor, "continuous", short, batch_wait_ms)
        for number in range(args.rounds):
            results = {}
            for strategy in _rotated(args.strategies, number):
                progress.set_description(f"round {number + 1}, {strategy}")
                results[strategy], timelines[strategy] = run_strategy(info, executor, strategy, load, batch_wait_ms)
                progress.update(1)
            rounds.append([results[strategy] for strategy in args.strategies])
    return rounds, timelines


def _drive(core: EngineCore) -> tuple[dict[str, float], dict[str, float], int]:
    """Step until all is done: the times of each request's first and last token, and how many tokens there were."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    num_tokens = 0
    while core.has_work:
        if (wait_s := core.wait_time_s()) is not None:
            time.sleep(wait_s)
        outputs = core.step()
        now = time.monotonic()
        for delta in outputs.deltas:
            if delta.error is not None:
                raise OrcinusError(f"a request failed: {delta.error}")
            if delta.token_ids:
                first.setdefault(delta.request_id, now)
                last[delta.request_id] = now
                num_tokens += len(delta.token_ids)
    return first, last, num_tokens


def _request(request_id: str, item: Item, arrival_time: float) -> AddRequest:
    return AddRequest(
        request_id=request_id,
        prompt_token_ids=item.prompt_token_ids,
        sampling=SamplingParams(max_tokens=item.num_output_tokens, temperature=0.0, seed=0, ignore_eos=True),
        arrival_time=arrival_time,
    )


def _slots_full(steps: Iterable[StepRecord], num_slots: int) -> float | None:
    shares = [step.num_running / num_slots for step in steps if step.num_waiting > 0]
    return statistics.fmean(shares) if shares else None


def _median_run(runs: Sequence[RunResult], vs_static: float | None) -> RunResult:
    names = [name for name in RunResult.__slots__ if name not in ("strategy", "vs_static")]
    values: dict[str, Any] = {}
    for name in names:
        known = [getattr(run, name) for run in runs if getattr(run, name) is not None]
        values[name] = statistics.median(known) if known else None
    whole = {name: int(values[name]) for name in ("num_requests", "num_slots", "num_steps")}
    return RunResult(strategy=runs[0].strategy, **(values | whole), vs_static=vs_static)


def _rotated(strategies: Sequence[BatchingStrategy], by: int) -> list[BatchingStrategy]:
    start = by % len(strategies)
    return [*strategies[start:], *strategies[:start]]


def _load_model(settings: Settings) -> tuple[EngineInfo, Executor]:
    limit_spinning()
    from orcinus.engine.platform.lean_imports import import_transformers

    import_transformers()
    from orcinus.engine.startup.build import build_executor

    config = settings.model_copy(update={"max_num_seqs": settings.max_num_seqs or _DEFAULT_SLOTS})
    return build_executor(config.engine_config())


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


def _plot_file(args: argparse.Namespace) -> Path | None:
    """Where to plot. Without matplotlib that is an error only if a plot was asked for."""
    if args.no_plot:
        return None
    if find_spec("matplotlib") is not None:
        return args.plot or _DEFAULT_PLOT
    if args.plot is not None:
        raise OrcinusError(NO_MATPLOTLIB)
    print(f"There will be no plot: {NO_MATPLOTLIB}", file=sys.stderr)
    return None


def _report(
    heading: str,
    shape: LoadShape,
    info: EngineInfo,
    runs: Sequence[RunResult],
    rounds: Sequence[Sequence[RunResult]],
) -> dict[str, Any]:
    return {
        "description": heading,
        "load": asdict(shape),
        "engine": msgspec.to_builtins(info),
        "medians": [asdict(run) for run in runs],
        "rounds": [[asdict(run) for run in one_round] for one_round in rounds],
    }


def _strategies(text: str) -> list[BatchingStrategy]:
    chosen = [strategy for strategy in STRATEGIES if strategy in text.split(",")]
    if len(chosen) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of {', '.join(STRATEGIES)}")
    return chosen


def _parser() -> Parser:
    parser = Parser("orcinus bench strategies", "[OPTIONS]", _DESCRIPTION, _EPILOG)
    load = parser.add_argument_group("Load (all requests arrive at once)")
    for name, kind, default, text in (
        ("requests", int, 64, "how many"),
        ("prompt-min", int, 32, "shortest prompt, in tokens"),
        ("prompt-max", int, 128, "longest prompt"),
        ("output-mean", float, 64.0, "mean of the exponential distribution of output lengths"),
        ("output-min", int, 8, "shortest output"),
        ("output-max", int, 256, "longest output"),
    ):
        load.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} [default: {default:g}]")
    run = parser.add_argument_group("Run")
    run.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds over all strategies [default: 3]")
    run.add_argument(
        "--strategies",
        type=_strategies,
        default=list(STRATEGIES),
        metavar="LIST",
        help=f"which, with commas [default: {','.join(STRATEGIES)}]",
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    run.add_argument("--plot", type=Path, metavar="FILE", help=f"where to draw [default: {_DEFAULT_PLOT}]")
    run.add_argument("--no-plot", action="store_true", help="draw nothing")
    add_settings(
        parser,
        groups=("Model", "Engine", "General"),
        without=("batching", "target_itl_ms", "served_model_name", "chat_template"),
    )
    return parser
