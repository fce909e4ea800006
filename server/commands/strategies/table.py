"""What the strategies came to, as a table: medians over rounds, ratios taken inside a round, what a token costs."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orcinus.server.commands.strategies.runs import RunResult
from orcinus.server.load.report import markdown_table

_BASELINES = ("static", "sequential")
_COUNTS = ("num_requests", "num_slots", "num_steps")


@dataclass(frozen=True, slots=True)
class Row:
    """A strategy's median run, and its throughput over that of each baseline that ran beside it."""

    run: RunResult
    versus: dict[str, float]


def summarize(rounds: Sequence[Sequence[RunResult]]) -> list[Row]:
    """Return a row for each strategy, in the order of the first round."""
    names = dict.fromkeys(run.strategy for runs in rounds for run in runs)
    return [Row(_median_run(_runs_of(rounds, name)), _versus(rounds, name)) for name in names]


def format_table(rows: Sequence[Row], price_per_hour: float | None = None) -> str:
    """Return the table in Markdown, so that it can be pasted into a document."""
    columns: dict[str, Callable[[Row], str]] = {
        "strategy": lambda row: row.run.strategy,
        "requests": lambda row: f"{row.run.num_requests}",
        "elapsed": lambda row: f"{row.run.elapsed_s:.2f} s",
        "tokens/s": lambda row: f"{row.run.output_tokens_per_s:.1f}",
        **{f"vs {name}": _ratio_to(name) for name in _BASELINES if any(name in row.versus for row in rows)},
        **_cost_columns(price_per_hour),
        "TTFT mean": lambda row: f"{row.run.mean_ttft_s:.2f} s",
        "TTFT p99": lambda row: f"{row.run.p99_ttft_s:.2f} s",
        "e2e mean": lambda row: f"{row.run.mean_e2e_s:.2f} s",
        "slots": lambda row: f"{row.run.num_slots}",
        "slots full": lambda row: "–" if row.run.slots_full is None else f"{row.run.slots_full:.1%}",
        "idle": lambda row: f"{row.run.idle:.1%}",
        "steps": lambda row: "–" if row.run.num_steps is None else f"{row.run.num_steps}",
    }
    return markdown_table([list(columns), *([show(row) for show in columns.values()] for row in rows)])


def price_per_million(run: RunResult, price_per_hour: float) -> float:
    """Return what a million output tokens cost on a machine that costs so much an hour and does nothing else."""
    return price_per_hour / 3600 / run.output_tokens_per_s * 1_000_000


def _cost_columns(price_per_hour: float | None) -> dict[str, Callable[[Row], str]]:
    if price_per_hour is None:
        return {}
    return {
        "per 1M tokens": lambda row: f"{price_per_million(row.run, price_per_hour):.3f}",
        "saved": lambda row: "–" if "sequential" not in row.versus else f"{1 - 1 / row.versus['sequential']:.0%}",
    }


def _ratio_to(baseline: str) -> Callable[[Row], str]:
    return lambda row: f"{row.versus[baseline]:.2f}x"


def _runs_of(rounds: Sequence[Sequence[RunResult]], strategy: str) -> list[RunResult]:
    return [run for one_round in rounds for run in one_round if run.strategy == strategy]


def _versus(rounds: Sequence[Sequence[RunResult]], strategy: str) -> dict[str, float]:
    versus = {}
    for baseline in _BASELINES:
        pairs = list(zip(_runs_of(rounds, strategy), _runs_of(rounds, baseline), strict=False))
        if pairs:
            versus[baseline] = statistics.median(
                run.output_tokens_per_s / base.output_tokens_per_s for run, base in pairs
            )
    return versus


def _median_run(runs: Sequence[RunResult]) -> RunResult:
    values: dict[str, Any] = {}
    for name in RunResult.__slots__:
        known = [getattr(run, name) for run in runs if getattr(run, name) is not None]
        values[name] = runs[0].strategy if name == "strategy" else statistics.median(known) if known else None
    whole = {name: None if values[name] is None else int(values[name]) for name in _COUNTS}
    return RunResult(**(values | whole))
