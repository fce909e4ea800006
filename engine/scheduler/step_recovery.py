"""What the scheduler remembers of steps that failed: who is suspected, and how much fits into memory.

The rules alone: they deal in ids and numbers, and know nothing of requests, blocks or the error.
"""

from collections.abc import Sequence

_MIN_PROMPT_TOKENS = 16
# A limit is doubled after so many steps in a row that did not run out of memory.
_STEPS_TO_RELAX = 64


class Trials:
    """Finds the request that makes steps fail, by halves: while there are groups, only the last one runs.

    Whoever gets through a step with a result is acquitted. A group that makes a step fail is split again.
    """

    def __init__(self) -> None:
        self._groups: list[set[str]] = []

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def group(self) -> set[str]:
        """Who runs now. Only while there are trials."""
        return self._groups[-1]

    def is_alone(self, request_id: str) -> bool:
        """Whether it is on trial, and nobody with it."""
        return bool(self._groups) and self.group == {request_id}

    def split(self, suspects: Sequence[str]) -> None:
        """These took part in a step that failed; while there are groups, all of them are of the last one."""
        self._remove(suspects)
        half = len(suspects) // 2
        self._groups += [set(group) for group in (suspects[half:], suspects[:half]) if group]

    def acquit(self, request_id: str) -> None:
        """It got through, or is gone."""
        if self._groups:
            self._remove([request_id])

    def _remove(self, request_ids: Sequence[str]) -> None:
        for group in self._groups:
            group.difference_update(request_ids)
        self._groups = [group for group in self._groups if group]


class MemoryRelief:
    """Fewer requests and shorter chunks of prompts after a step that ran out of memory; None: no limit."""

    def __init__(self) -> None:
        self.max_running: int | None = None
        self.max_prompt_tokens: int | None = None
        self._num_good_steps = 0

    def shrink(self, num_running: int, num_prompt_tokens: int) -> bool:
        """Half of what the step had, which is then the most. False if it had no more than the least."""
        self._num_good_steps = 0
        is_smaller = False
        if num_running > 1:
            self.max_running = num_running // 2
            is_smaller = True
        if num_prompt_tokens > _MIN_PROMPT_TOKENS:
            self.max_prompt_tokens = max(_MIN_PROMPT_TOKENS, num_prompt_tokens // 2)
            is_smaller = True
        return is_smaller

    def relax(self, num_slots: int, max_prompt_tokens: int) -> None:
        """A step fitted into memory. Limits that are no limits any more are dropped."""
        self._num_good_steps += 1
        if self._num_good_steps < _STEPS_TO_RELAX:
            return
        self._num_good_steps = 0
        self.max_running = _doubled(self.max_running, num_slots)
        self.max_prompt_tokens = _doubled(self.max_prompt_tokens, max_prompt_tokens)


def _doubled(limit: int | None, most: int) -> int | None:
    return None if limit is None or 2 * limit >= most else 2 * limit
