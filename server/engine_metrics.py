"""What /metrics says of each engine, by the label `engine`: its number, from 0, also where there is one alone.

Names of their own, so that what sums over all engines is not counted twice.
"""

from collections import Counter
from collections.abc import Mapping

from orcinus.engine.messages import StepStats

Labels = tuple[str, ...]

GAUGES = {
    "orcinus_engine_up": "1 while the engine is up, 0 while it loads, is replaced, or is lost for good.",
    "orcinus_engine_slots": "Sequences that can run in the engine at once.",
    "orcinus_engine_slots_in_use": "Sequences that run in the engine now.",
    "orcinus_engine_queue_depth": "Sequences that were sent to the engine and wait for a slot there.",
    "orcinus_engine_kv_blocks": "Blocks of the engine's KV cache.",
    "orcinus_engine_kv_blocks_in_use": "Those that running sequences hold.",
}
COUNTERS = {
    "orcinus_engine_sampled_tokens_total": "Tokens that the engine sampled.",
    "orcinus_engine_prefill_tokens_total": "Prompt tokens that the engine computed.",
    "orcinus_engine_prefix_cache_queries_total": "Prompt tokens looked up in the engine's prefix cache.",
    "orcinus_engine_prefix_cache_hits_total": "Prompt tokens found there.",
}


class EngineMetrics:
    """The latest numbers of each engine, and what its steps add up to."""

    def __init__(self) -> None:
        self._engines: dict[int, tuple[bool, StepStats]] = {}
        self._counts: dict[str, Counter[Labels]] = {name: Counter() for name in COUNTERS}

    def on_engine(self, index: int, *, is_up: bool, stats: StepStats) -> None:
        """Take in a step, or that the engine came up or ended."""
        self._engines[index] = (is_up, stats)
        label = (str(index),)
        for name, count in zip(
            COUNTERS,
            (stats.num_sampled_tokens, stats.num_prefill_tokens, stats.prefix_cache_queries, stats.prefix_cache_hits),
            strict=True,
        ):
            self._counts[name][label] += count

    def values(self) -> dict[str, Mapping[Labels, float]]:
        """Return the value of each of `GAUGES` and `COUNTERS`, by labels."""
        found: dict[str, Mapping[Labels, float]] = dict(self._counts)
        for position, name in enumerate(GAUGES):
            found[name] = {(str(index),): _gauges(*engine)[position] for index, engine in self._engines.items()}
        return found


def _gauges(is_up: bool, stats: StepStats) -> tuple[float, ...]:
    """Return the values of `GAUGES`, in their order."""
    slots, blocks = (stats.num_slots, stats.num_running), (stats.num_kv_blocks, stats.num_kv_blocks_used)
    return float(is_up), *slots, stats.num_waiting, *blocks
