"""The numbers of several engines as those of one."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from orcinus.engine.messages import StepStats

_T = TypeVar("_T", int, float)
_COUNTS = (
    *("num_running", "num_waiting", "num_slots", "num_running_tokens", "num_kv_blocks", "num_kv_blocks_used"),
    *("num_snapshots", "num_snapshots_used"),
)


def combine_stats(step: StepStats, others: Sequence[StepStats], *, is_memory_shared: bool = False) -> StepStats:
    """Return one engine's `step` with the gauges of all: sums of counts and of memory, and the mean utilization.

    Each engine is taken to have a device of its own, unless all are in the memory of one. What one does not know (None)
    is left out.
    """
    if not others:
        return step
    everyone = [step, *others]
    utilizations = _known(stats.device_utilization for stats in everyone)
    used = _known(stats.device_memory_used_bytes for stats in everyone)
    total = _known(stats.device_memory_total_bytes for stats in everyone)
    return msgspec.structs.replace(
        step,
        **{name: sum(getattr(stats, name) for stats in everyone) for name in _COUNTS},
        device_utilization=sum(utilizations) / len(utilizations) if utilizations else None,
        device_memory_used_bytes=sum(used) if used else None,
        device_memory_total_bytes=_total(total, is_memory_shared),
    )


def _total(each: Sequence[int], is_memory_shared: bool) -> int | None:
    if not each:
        return None
    return max(each) if is_memory_shared else sum(each)


def _known(values: Iterable[_T | None]) -> list[_T]:
    return [value for value in values if value is not None]
