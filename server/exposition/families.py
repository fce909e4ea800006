"""Numbers as prometheus-client takes them: a histogram that costs next to nothing until it is scraped, and families.

A family is all samples of one metric. Knows nothing of which metrics there are.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from orcinus.server.exposition.declarations import MetricSpec

Labels = tuple[str, ...]


class Histogram:
    """Counts per bucket; `observe` is all that happens between scrapes."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self._counts)

    @property
    def count_and_sum(self) -> tuple[int, float]:
        return self.count, self.sum

    def observe(self, value: float, weight: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += weight
        self.sum += value * weight

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        """Add what was observed to a metric, under these labels."""
        buckets, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(labels, buckets, self.sum)


def merged(histograms: Iterable[Histogram], bounds: Sequence[float]) -> Histogram:
    """Return a histogram of all that others with the same bounds observed."""
    total = Histogram(bounds)
    for histogram in histograms:
        assert histogram._bounds == total._bounds, "histograms of other bounds"
        total._counts = [mine + its for mine, its in zip(total._counts, histogram._counts, strict=True)]
        total.sum += histogram.sum
    return total


def family(spec: MetricSpec, values: Mapping[Labels, Any]) -> Metric:
    """Return a metric with its samples: histograms are `Histogram`, all others numbers, or None where not known yet."""
    match spec.kind:
        case "histogram":
            return _histogram(spec, values)
        case "counter":
            made: Metric = CounterMetricFamily(spec.name.removesuffix("_total"), spec.help, labels=spec.labels)
        case "gauge":
            made = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
    for labels, value in values.items():
        if value is not None:
            made.add_metric(labels, value)  # type: ignore[attr-defined]
    return made


def _histogram(spec: MetricSpec, values: Mapping[Labels, Histogram]) -> Metric:
    made = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
    for labels, histogram in values.items():
        histogram.add_to(made, labels)
    return made
