"""What the records of a load add up to: latencies, throughput, goodput. Pure arithmetic on times in seconds."""

import argparse
import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orcinus.server.load.answers import LoadError, RequestRecord
from orcinus.server.load.report import percentile
from orcinus.server.load.run import LoadRun

OBJECTIVES = ("ttft", "tpot", "e2el")
_WINDOW_S = 1.0


def knee_of(sizes: Sequence[int], speeds: Sequence[float]) -> int | None:
    """Return the batch size from which on a larger one brings less than its share; None where the curve has no knee.

    Kneedle (Satopää et al., 2011): with both axes scaled to 0..1, the point that lies highest above the diagonal.
    """
    if len(sizes) < 3 or max(speeds) == min(speeds):
        return None
    least, most = min(speeds), max(speeds)
    heights = [
        (speed - least) / (most - least) - (size - sizes[0]) / (sizes[-1] - sizes[0])
        for size, speed in zip(sizes, speeds, strict=True)
    ]
    highest = max(heights)
    return sizes[heights.index(highest)] if highest > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One latency over all that have it, in milliseconds."""

    mean: float
    median: float
    p90: float
    p99: float
    std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Tells how many requests kept within all objectives: a second, and of all that were sent."""

    requests_per_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A load in numbers. A latency is None where no request has it, a count where the server does not count."""

    num_succeeded: int
    failures: dict[str, int]
    duration_s: float
    asked_prompt_tokens: int | None
    prompt_tokens: int | None
    cached_tokens: int | None
    asked_output_tokens: int
    output_tokens: int
    are_tokens_counted: bool
    tokens_per_chunk: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float | None
    peak_output_tokens_per_s: float
    peak_concurrency: int
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2el_ms: Spread | None
    goodput: Goodput | None
    client_cpu: float

    @property
    def num_failed(self) -> int:
        return sum(self.failures.values())


def summarize(run: LoadRun, objectives_ms: Mapping[str, float]) -> Summary:
    """Failed requests count as failed and nowhere else. Raises `LoadError` if there are no others."""
    failures = dict(Counter(record.failure for record in run.records if record.failure is not None).most_common())
    good = [record for record in run.records if record.failure is None]
    if not good:
        counted = ", ".join(f"{count} x {reason}" for reason, count in failures.items())
        raise LoadError(f"no request succeeded: {counted}; the first error: {first_error(run)}")
    output_tokens = sum(record.output_tokens for record in good)
    prompt_tokens = _sum_known([record.prompt_tokens for record in good])
    total_tokens = None if prompt_tokens is None else prompt_tokens + output_tokens
    return Summary(
        num_succeeded=len(good),
        failures=failures,
        duration_s=run.duration_s,
        asked_prompt_tokens=_sum_known([record.asked_prompt_tokens for record in good]),
        prompt_tokens=prompt_tokens,
        cached_tokens=_sum_known([record.cached_tokens for record in good]),
        asked_output_tokens=sum(record.asked_output_tokens for record in good),
        output_tokens=output_tokens,
        are_tokens_counted=all(record.completion_tokens is not None for record in good),
        tokens_per_chunk=output_tokens / sum(len(record.chunk_times_s) for record in good),
        requests_per_s=len(good) / run.duration_s,
        output_tokens_per_s=output_tokens / run.duration_s,
        total_tokens_per_s=None if total_tokens is None else total_tokens / run.duration_s,
        peak_output_tokens_per_s=_peak_rate(good, min(_WINDOW_S, run.duration_s)),
        peak_concurrency=peak_concurrency(run.records),
        ttft_ms=spread([record.ttft_s for record in good if record.ttft_s is not None]),
        tpot_ms=spread([record.tpot_s for record in good if record.tpot_s is not None]),
        itl_ms=spread([gap_s for record in good for gap_s in record.gaps_s]),
        e2el_ms=spread([record.e2e_s for record in good]),
        goodput=_goodput(run, objectives_ms) if objectives_ms else None,
        client_cpu=run.client_cpu,
    )


def first_error(run: LoadRun) -> str | None:
    """Return what the first failed request was told."""
    return next((record.error for record in run.records if record.failure is not None), None)


def spread(values_s: Sequence[float]) -> Spread | None:
    """Of values in seconds; None if there are none."""
    if not values_s:
        return None
    values = [1000 * value for value in values_s]
    mean = statistics.fmean(values)
    return Spread(
        mean=mean,
        median=statistics.median(values),
        p90=percentile(values, 90),
        p99=percentile(values, 99),
        std=math.sqrt(statistics.fmean((value - mean) ** 2 for value in values)),
    )


def meets(record: RequestRecord, objectives_ms: Mapping[str, float]) -> bool:
    """Whether a request succeeded within all objectives. One token has no time per token that could be too long."""
    if record.failure is not None:
        return False
    measured = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.e2e_s}
    return all(1000 * (measured[name] or 0.0) <= limit_ms for name, limit_ms in objectives_ms.items())


def peak_concurrency(records: Sequence[RequestRecord]) -> int:
    """The most requests that were under way at one time; one that ends as another is sent makes room for it."""
    changes = sorted(itertools.chain.from_iterable(((r.sent_s, 1), (r.ended_s, -1)) for r in records))
    return max(itertools.accumulate(change for _, change in changes))


def tokens_over_time(records: Sequence[RequestRecord], window_s: float) -> list[float]:
    """Output tokens in each window of the run; those of an answer are spread evenly over its chunks."""
    windows: defaultdict[int, float] = defaultdict(float)
    for record in records:
        for time_s in record.chunk_times_s:
            windows[int(time_s / window_s)] += record.output_tokens / len(record.chunk_times_s)
    return [windows[window] for window in range(max(windows) + 1)]


def parse_objectives(text: str) -> dict[str, float]:
    """`ttft:500,tpot:50` as milliseconds by name. Raises `ArgumentTypeError`."""
    objectives = {}
    for part in text.split(","):
        name, _, limit = part.partition(":")
        if name not in OBJECTIVES or not limit.replace(".", "", 1).isdecimal():
            raise argparse.ArgumentTypeError(
                f"{part!r} is no objective; give {', '.join(f'{name}:MS' for name in OBJECTIVES)}, with commas"
            )
        objectives[name] = float(limit)
    return objectives


def _peak_rate(records: Sequence[RequestRecord], window_s: float) -> float:
    return max(tokens_over_time(records, window_s)) / window_s


def _goodput(run: LoadRun, objectives_ms: Mapping[str, float]) -> Goodput:
    num_good = sum(meets(record, objectives_ms) for record in run.records)
    return Goodput(requests_per_s=num_good / run.duration_s, share=num_good / len(run.records))


def _sum_known(counts: Sequence[int | None]) -> int | None:
    """The sum; None if one of the counts is unknown, as it would be no sum of all."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
