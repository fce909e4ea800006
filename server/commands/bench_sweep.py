"""`orcinus bench sweep`: the load of `orcinus bench serve` at one batch size after the other.

Each batch size gets requests of the same lengths that say something else, so that no prefix cache makes the later ones
look faster than the first.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from orcinus.config.arguments import Parser
from orcinus.server.load.figures import Spread, Summary, knee_of, summarize
from orcinus.server.load.options import (
    add_prompt_options,
    add_report_options,
    add_target_options,
    check_options,
    whole_number,
)
from orcinus.server.load.raw_numbers import write_numbers
from orcinus.server.load.report import markdown_table
from orcinus.server.load.run import LoadRun
from orcinus.server.load.session import client_of, open_session, run_on_fast_loop
from orcinus.server.load.summary_table import notes_on
from orcinus.server.load.target import num_slots

_DEFAULT_SIZES = "1,2,4,8,16,32,64,128"
_REQUESTS_PER_STREAM = 4
_FEWEST_REQUESTS = 8

_DESCRIPTION = """\
Measure a running server with an OpenAI API at several batch sizes: so many requests are under way at a time, each is
followed by the next one. Prints one table. What each request is, `orcinus bench serve --help` explains.
"""
_EPILOG = """\
columns:
  output tok/s  generated tokens over the time of the whole load
  TTFT, ITL     time to first token, time between chunks of an answer
  ratio         output tok/s over that of the first batch size
  Knee          the batch size from which on a larger one brings less than its share (Kneedle)

examples:
  orcinus bench sweep --ignore-eos --warmup 8
  orcinus bench sweep --base-url http://gpu:8000 --concurrency 1,8,64,256 --ignore-eos --plot sweep.png
"""


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """Holds what was measured at one batch size."""

    size: int
    run: LoadRun
    summary: Summary


def format_sweep(points: Sequence[SweepPoint], slots: int | None = None) -> str:
    """Return one line for each batch size, and what is to be said of them, on a server with so many slots."""
    head = ["batch size", "requests", "failed", "output tok/s", "ratio", "TTFT median", "TTFT p99", "ITL median"]
    rows = [_row(point, points[0]) for point in points]
    table = markdown_table([[*head, "ITL p99", "client CPU"], *rows])
    return "\n".join([table, *_knee(points), *_beyond(points, slots), *notes_on([point.summary for point in points])])


def _knee(points: Sequence[SweepPoint]) -> list[str]:
    knee = knee_of([point.size for point in points], [point.summary.output_tokens_per_s for point in points])
    return [] if knee is None else [f"Knee: batch size {knee}"]


def _beyond(points: Sequence[SweepPoint], slots: int | None) -> list[str]:
    """Warn of sizes of which part waits in the queue: their rows say how the server queues, not how it batches."""
    sizes = [point.size for point in points if slots is not None and point.size > slots]
    if not sizes:
        return []
    return [f"Warning: the server has {slots} slots (--max-num-seqs); batch sizes above wait for one: {sizes}"]


def main(argv: Sequence[str]) -> int:
    args = _parser().parse(argv)
    check_options(args)
    points, description, slots = run_on_fast_loop(_measure(args))
    print(f"{description}\n\n{format_sweep(points, slots)}")
    if args.json is not None:
        write_numbers(args.json, description, args, [(point.run, point.summary) for point in points])
    if args.plot is not None:
        from orcinus.server.load.plots import plot_sweep

        files = plot_sweep([(point.size, point.summary) for point in points], description, args.plot)
        print(f"\nThe plots are in {' and '.join(map(str, files))}")
    return 0


async def _measure(args: argparse.Namespace) -> tuple[list[SweepPoint], str, int | None]:
    points = []
    async with client_of(args) as client:
        session = await open_session(client, args)
        slots = await num_slots(client)
        await session.warm_up(max(args.concurrency))
        for size in args.concurrency:
            items = session.items(_num_requests(args.num_requests, size), f"batch size {size}")
            run = await session.run(items, name=f"batch size {size}", max_concurrency=size)
            points.append(SweepPoint(size, run, summarize(run, {})))
    return points, session.describe(), slots


def _num_requests(wanted: int | None, size: int) -> int:
    """Never fewer than fill the batch."""
    return max(wanted or max(_REQUESTS_PER_STREAM * size, _FEWEST_REQUESTS), size)


def _row(point: SweepPoint, first: SweepPoint) -> list[str]:
    summary = point.summary
    return [
        f"{point.size}",
        f"{len(point.run.records)}",
        f"{summary.num_failed}",
        f"{summary.output_tokens_per_s:.1f}",
        f"{summary.output_tokens_per_s / first.summary.output_tokens_per_s:.2f}x",
        *_latency(summary.ttft_ms),
        *_latency(summary.itl_ms),
        f"{summary.client_cpu:.0%}",
    ]


def _latency(spread: Spread | None) -> tuple[str, str]:
    return ("–", "–") if spread is None else (f"{spread.median:.1f} ms", f"{spread.p99:.1f} ms")


def _sizes(text: str) -> list[int]:
    return [whole_number(part) for part in text.split(",")]


def _parser() -> Parser:
    parser = Parser("orcinus bench sweep", "[OPTIONS]", _DESCRIPTION, _EPILOG)
    add_target_options(parser)
    load = parser.add_argument_group("Load")
    load.add_argument(
        "--concurrency",
        type=_sizes,
        default=_sizes(_DEFAULT_SIZES),
        metavar="LIST",
        help=f"batch sizes, with commas [default: {_DEFAULT_SIZES}]",
    )
    load.add_argument(
        "--num-requests",
        type=whole_number,
        metavar="N",
        help=f"at each batch size, and never fewer than that [default: {_REQUESTS_PER_STREAM} times the batch size,"
        f" at least {_FEWEST_REQUESTS}]",
    )
    add_prompt_options(parser)
    add_report_options(parser, "draw FILE-throughput and FILE-latency, with the suffix of FILE")
    return parser
