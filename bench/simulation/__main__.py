"""What clients would wait at several rates of arrival: the engine's own scheduler on a virtual clock, without a model.

    python -m bench.simulation [--profile cpu] [--request-rate 0.4,0.7,1.0] [--target-ttft-ms 500,1000]
        [--target-itl-ms 100,200] [--seeds 8] [--slowdown 1.25]

One row for each rate and setting: no limit (prompts take all tokens of a step), each objective for the first token, and
each objective for the time between two. Requests are those that `bench.peers --request-rate` sends, and arrive at the
same times; all figures are means over the seeds. `--profile` is a machine: see `bench/simulation/costs.py`.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.peers.loads import parse_rates, poisson_load
from bench.simulation.costs import PROFILES, StepShape
from bench.simulation.traffic import Arrival, TimedExecutor, Unlimited, VirtualClock, engine_info, simulate
from orcinus.engine.core import EngineCore
from orcinus.server.load.figures import Spread, Summary, summarize
from orcinus.server.load.report import markdown_table

OBJECTIVES_MS = {"ttft": 2000.0, "tpot": 120.0}
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 32, 512  # as a CPU server has them by default
_VOCAB_SIZE = 1000
_COLUMNS = ["TTFT p50", "p99", "ITL p50", "p99", "TPOT p99", "e2e p50", "goodput", "tok/s"]


@dataclass(frozen=True, slots=True)
class Policy:
    """A setting of the server, or no limit at all."""

    name: str
    target_itl_ms: float | None = None
    target_ttft_ms: float = 500.0
    is_unlimited: bool = False


def main() -> int:
    options = parse_arguments()
    rows = [
        [f"{rate:g}", policy.name, *row(options, rate, policy)]
        for rate in options.request_rate
        for policy in policies(options)
    ]
    print(markdown_table([["requests/s", "setting", *_COLUMNS], *rows]))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--request-rate", type=parse_rates, default=[0.4, 0.7, 1.0])
    parser.add_argument("--target-ttft-ms", type=parse_rates, default=[500.0])
    parser.add_argument("--target-itl-ms", type=parse_rates, default=[])
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--slowdown", type=float, default=1.0, help="every step takes so many times longer")
    return parser.parse_args()


def policies(options: argparse.Namespace) -> list[Policy]:
    return [
        Policy("no limit", is_unlimited=True),
        *(Policy(f"--target-ttft-ms {ms:g}", target_ttft_ms=ms) for ms in options.target_ttft_ms),
        *(Policy(f"--target-itl-ms {ms:g}", target_itl_ms=ms) for ms in options.target_itl_ms),
    ]


def row(options: argparse.Namespace, rate: float, policy: Policy) -> list[str]:
    def step_time(shape: StepShape) -> float:
        return float(options.slowdown * PROFILES[options.profile](shape))

    runs = [run(step_time, policy, arrivals(rate, options.requests, seed)) for seed in range(options.seeds)]
    return [
        _mean(_spread(summary.ttft_ms).median for summary in runs),
        _mean(_spread(summary.ttft_ms).p99 for summary in runs),
        _mean(_spread(summary.itl_ms).median for summary in runs),
        _mean(_spread(summary.itl_ms).p99 for summary in runs),
        _mean(_spread(summary.tpot_ms).p99 for summary in runs),
        _mean(_spread(summary.e2el_ms).median for summary in runs),
        _mean((summary.goodput.share for summary in runs if summary.goodput is not None), digits=2),
        _mean(summary.output_tokens_per_s for summary in runs),
    ]


def arrivals(rate: float, num_requests: int, seed: int) -> list[Arrival]:
    load = poisson_load(rate, num_requests, seed)
    items = load.items(_VOCAB_SIZE, "simulated")
    return [
        Arrival(at_s, item.prompt_tokens or 0, item.max_tokens, content)
        for content, (item, at_s) in enumerate(zip(items, load.arrivals, strict=True))
    ]


def run(step_time: Callable[[StepShape], float], policy: Policy, requests: Sequence[Arrival]) -> Summary:
    clock = VirtualClock()
    core = EngineCore(
        engine_info(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS),
        TimedExecutor(clock, step_time),
        target_itl_ms=policy.target_itl_ms,
        target_ttft_ms=policy.target_ttft_ms,
        clock=clock,
    )
    if policy.is_unlimited:
        core.scheduler._prefill_budget = Unlimited()
    return summarize(simulate(core, clock, requests), OBJECTIVES_MS)


def _spread(spread: Spread | None) -> Spread:
    assert spread is not None, "every request has several tokens"
    return spread


def _mean(values: Iterable[float], digits: int = 0) -> str:
    return f"{statistics.fmean(values):.{digits}f}"


if __name__ == "__main__":
    raise SystemExit(main())
