"""Padded static batching, as a loop around `generate` does it: a baseline for the strategies, with the same kernels.

A group is as many requests as there are slots. All its prompts are as long as the longest one, and all its rows compute
until the longest answer is done; what a row computes beyond its own lengths is padding and is counted as nothing.
"""

from dataclasses import replace

from orcinus.server.commands.strategies.load import Arrival, Arrivals


class PaddedGroups:
    """Holds requests back until a whole group can start, and pads it.

    With `sorts_by_length` the group is made of the prompts that are shortest among those that wait, which pads less and
    keeps long ones waiting. Output lengths are not known beforehand, so nothing is sorted by them.
    """

    def __init__(self, arrivals: Arrivals, num_slots: int, batch_wait_s: float, *, sorts_by_length: bool) -> None:
        self._arrivals = arrivals
        self._num_slots = num_slots
        self._batch_wait_s = batch_wait_s
        self._sorts_by_length = sorts_by_length
        self._waiting: list[Arrival] = []

    @property
    def has_more(self) -> bool:
        return bool(self._waiting) or self._arrivals.has_more

    def take(self, elapsed_s: float, num_done: int, *, is_idle: bool) -> list[Arrival]:
        """Return a padded group if the engine is idle and the group is full or has waited long enough."""
        self._waiting += self._arrivals.take(elapsed_s, num_done, is_idle=is_idle)
        if not is_idle or not self._waiting or self._start_in_s(elapsed_s) > 0:
            return []
        if self._sorts_by_length:
            self._waiting.sort(key=lambda arrival: len(arrival.prompt_token_ids))
        group, self._waiting = self._waiting[: self._num_slots], self._waiting[self._num_slots :]
        return _padded(group)

    def wait_s(self, elapsed_s: float) -> float | None:
        """Return the seconds until something may change by the clock alone; None if nothing does."""
        waits_s = [self._arrivals.wait_s(elapsed_s), self._start_in_s(elapsed_s) if self._waiting else None]
        return min((wait_s for wait_s in waits_s if wait_s is not None), default=None)

    def _start_in_s(self, elapsed_s: float) -> float:
        if len(self._waiting) >= self._num_slots or not self._arrivals.has_more:
            return 0.0
        return min(arrival.arrived_s for arrival in self._waiting) + self._batch_wait_s - elapsed_s


def _padded(group: list[Arrival]) -> list[Arrival]:
    """Make all rows as long as the longest. Padding repeats a prompt's first token: what it says does not matter."""
    length = max(len(arrival.prompt_token_ids) for arrival in group)
    num_tokens = max(arrival.num_tokens for arrival in group)
    return [
        replace(
            arrival,
            prompt_token_ids=arrival.prompt_token_ids[:1] * (length - len(arrival.prompt_token_ids))
            + arrival.prompt_token_ids,
            num_tokens=num_tokens,
        )
        for arrival in group
    ]
