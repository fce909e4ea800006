"""What /metrics says of each engine, by the label `engine`: its number, from 0, also where there is one alone.

Names of their own, so that what sums over all engines is not counted twice.
"""

from collections import Counter
from collections.abc import Mapping

from orcinus.engine.messages import StepStats
from orcinus.server.exposition.declarations import ENGINE_COUNTERS, ENGINE_GAUGES
from orcinus.server.exposition.families import Labels


class EngineMetrics:
    """The latest numbers of each engine, and what its steps add up to."""

    def __init__(self) -> None:
        self._engines: dict[int, tuple[bool, StepStats]] = {}
        self._counts: dict[str, Counter[Labels]] = {name: Counter() for name in ENGINE_COUNTERS}

    def on_engine(self, index: int, *, is_up: bool, stats: StepStats) -> None:
        """Take in a step, or that the engine came up or ended."""
        self._engines[index] = (is_up, stats)
        label = (str(index),)
        for name, count in zip(
            ENGINE_COUNTERS,
            (stats.num_sampled_tokens, stats.num_prefill_tokens, stats.prefix_cache_queries, stats.prefix_cache_hits),
            strict=True,
        ):
            self._counts[name][label] += count

    def values(self) -> dict[str, Mapping[Labels, float]]:
        """Return the value of each of `ENGINE_GAUGES` and `ENGINE_COUNTERS`, by labels."""
        found: dict[str, Mapping[Labels, float]] = dict(self._counts)
        for position, name in enumerate(ENGINE_GAUGES):
            found[name] = {(str(index),): _gauges(*engine)[position] for index, engine in self._engines.items()}
        return found


def _gauges(is_up: bool, stats: StepStats) -> tuple[float, ...]:
    """Return the values of `ENGINE_GAUGES`, in their order."""
    slots, blocks = (stats.num_slots, stats.num_running), (stats.num_kv_blocks, stats.num_kv_blocks_used)
    return float(is_up), *slots, stats.num_waiting, *blocks
