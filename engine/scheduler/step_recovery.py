"""What the scheduler remembers of steps that failed: which requests are suspected, and how much fits into memory.

Holds the rules alone. It deals in ids and numbers, and knows nothing of requests, blocks or the error.
"""

from collections.abc import Sequence

_MIN_EXTRA_TOKENS = 16
# A limit is doubled after so many steps in a row that did not run out of memory.
_STEPS_TO_RELAX = 64


class CulpritSearch:
    """Finds the request that makes steps fail, by halves: while there are groups of suspects, only the last one runs.

    A request that gets through a step with a result is cleared. A group that makes a step fail is split again.
    """

    def __init__(self) -> None:
        self._groups: list[set[str]] = []

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def group(self) -> set[str]:
        """The suspects that run now. Only while a search is on."""
        return self._groups[-1]

    def is_sole_suspect(self, request_id: str) -> bool:
        """Whether the group that runs now is this request alone."""
        return bool(self._groups) and self.group == {request_id}

    def split(self, suspects: Sequence[str]) -> None:
        """Halve those that took part in a step that failed; while there are groups, all of them are of the last one."""
        self._remove(suspects)
        half = len(suspects) // 2
        self._groups += [set(group) for group in (suspects[half:], suspects[:half]) if group]

    def clear(self, request_id: str) -> None:
        """Suspect a request no more: it got through a step, or is gone."""
        if self._groups:
            self._remove([request_id])

    def _remove(self, request_ids: Sequence[str]) -> None:
        for group in self._groups:
            group.difference_update(request_ids)
        self._groups = [group for group in self._groups if group]


class MemoryBackoff:
    """Lets fewer requests run, with fewer tokens beside their next ones, after a step that ran out of memory.

    A limit of None is no limit.
    """

    def __init__(self) -> None:
        self.max_running: int | None = None
        self.max_extra_tokens: int | None = None  # of prompts
        self._num_good_steps = 0

    def shrink(self, num_running: int, num_extra_tokens: int) -> bool:
        """Allow half of what the step had. Return False if it had no more than the least."""
        self._num_good_steps = 0
        is_smaller = False
        if num_running > 1:
            self.max_running = num_running // 2
            is_smaller = True
        if num_extra_tokens > _MIN_EXTRA_TOKENS:
            self.max_extra_tokens = max(_MIN_EXTRA_TOKENS, num_extra_tokens // 2)
            is_smaller = True
        return is_smaller

    def relax(self, num_slots: int, max_extra_tokens: int) -> None:
        """Count a step that fitted into memory; after some, double the limits, and drop those that limit nothing."""
        self._num_good_steps += 1
        if self._num_good_steps < _STEPS_TO_RELAX:
            return
        self._num_good_steps = 0
        self.max_running = _doubled(self.max_running, num_slots)
        self.max_extra_tokens = _doubled(self.max_extra_tokens, max_extra_tokens)


def _doubled(limit: int | None, most: int) -> int | None:
    return None if limit is None or 2 * limit >= most else 2 * limit
