"""`orcinus bench serve`: load on a server that speaks the OpenAI API, and what its users would have seen.

A client of HTTP and nothing else: it works on any such server, and on this one without special treatment.
"""

import argparse
import math
import random
import sys
from collections.abc import Sequence

from orcinus.config.arguments import Parser
from orcinus.config.settings import SettingsError
from orcinus.server.load.arrivals import arrival_times
from orcinus.server.load.figures import first_error, parse_objectives, summarize
from orcinus.server.load.options import (
    add_prompt_options,
    add_report_options,
    add_target_options,
    check_options,
    positive_number,
    rate,
    whole_number,
)
from orcinus.server.load.raw_numbers import write_numbers
from orcinus.server.load.run import LoadRun
from orcinus.server.load.session import client_of, open_session, run_on_fast_loop
from orcinus.server.load.summary_table import format_summary

_DESCRIPTION = """\
Put load on a running server with an OpenAI API, whichever it is, and measure what its clients see: time to first
token (TTFT), time per output token (TPOT), inter-token latency (ITL), end-to-end latency (E2EL), throughput.
"""
_EPILOG = """\
notes:
  Only fields of the OpenAI API are sent, except with --ignore-eos.
  The same seed gives the same prompts: a server that keeps a prefix cache answers the second run faster. The table
  says how many prompt tokens came from the cache.

examples:
  orcinus bench serve --num-requests 200 --max-concurrency 32 --ignore-eos
  orcinus bench serve --base-url http://gpu:8000 --request-rate 4 --goodput ttft:500,tpot:50
  orcinus bench serve --prompt-tokens uniform:32..512 --output-tokens exponential:64,8..256 --plot load.png
  orcinus bench serve --endpoint chat --dataset questions.jsonl --json numbers.json
"""


def main(argv: Sequence[str]) -> int:
    args = _parser().parse(argv)
    check_options(args)
    if args.burstiness != 1 and math.isinf(args.request_rate):
        raise SettingsError("--burstiness needs --request-rate: without a rate all requests come at once")
    run, description = run_on_fast_loop(_measure(args))
    objectives_ms = args.goodput or {}
    summary = summarize(run, objectives_ms)
    print(f"{description}\n\n{format_summary(summary, objectives_ms)}")
    if summary.num_failed:
        print(f"The first error: {first_error(run)}", file=sys.stderr)
    if args.json is not None:
        write_numbers(args.json, description, args, [(run, summary)])
    if args.plot is not None:
        from orcinus.server.load.plots import plot_run

        plot_run(run, summary, description, args.plot)
        print(f"\nThe plot is in {args.plot}")
    return 0


async def _measure(args: argparse.Namespace) -> tuple[LoadRun, str]:
    async with client_of(args) as client:
        session = await open_session(client, args)
        items = session.items(args.num_requests)
        await session.warm_up(args.max_concurrency)
        rng = random.Random(f"arrivals {args.seed}")  # noqa: S311 - a load, not a secret
        arrivals = arrival_times(len(items), args.request_rate, args.burstiness, rng)
        run = await session.run(items, arrivals=arrivals, max_concurrency=args.max_concurrency)
    return run, f"{session.describe()}\n{len(items)} requests, {_describe_pace(args)}"


def _describe_pace(args: argparse.Namespace) -> str:
    at_a_time = f", at most {args.max_concurrency} at a time" if args.max_concurrency else ""
    if math.isinf(args.request_rate):
        return f"as fast as they are taken{at_a_time}"
    return f"{args.request_rate:g} a second (burstiness {args.burstiness:g}){at_a_time}"


def _parser() -> Parser:
    parser = Parser("orcinus bench serve", "[OPTIONS]", _DESCRIPTION, _EPILOG)
    add_target_options(parser)
    load = parser.add_argument_group("Load")
    load.add_argument(
        "--num-requests",
        type=whole_number,
        metavar="N",
        help="how many; a dataset starts again when it is at its end [default: 100, or all of the dataset]",
    )
    load.add_argument(
        "--max-concurrency", type=whole_number, metavar="N", help="how many at a time at most [default: no limit]"
    )
    load.add_argument(
        "--request-rate",
        type=rate,
        default=math.inf,
        metavar="R",
        help="requests a second, on average [default: inf, all at once]",
    )
    load.add_argument(
        "--burstiness",
        type=positive_number,
        default=1.0,
        metavar="B",
        help="shape of the gamma-distributed gaps: 1 is a Poisson process, less comes in bursts [default: 1]",
    )
    add_prompt_options(parser)
    report = add_report_options(parser, "draw latencies and throughput over time")
    report.add_argument(
        "--goodput",
        type=parse_objectives,
        metavar="LIST",
        help="count requests within objectives in ms: ttft:500,tpot:50,e2el:9000",
    )
    return parser
