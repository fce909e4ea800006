"""How fast what was admitted gets done, from which a refused client is told when to come back."""

import math

_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 120.0
_UNMEASURED_RETRY_S = 10.0


class DrainRate:
    """Of anything that is counted (choices, tokens): how many per second of busy time, the last half minute first."""

    memory_s = 30.0

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._num_done = 0.0

    def observe(self, busy_s: float, num_done: int) -> None:
        keep = math.exp(-busy_s / self.memory_s)
        self._busy_s = self._busy_s * keep + busy_s
        self._num_done = self._num_done * keep + num_done

    def time_for(self, num: float) -> float:
        """Seconds until so many more will be done, between 1 and 120."""
        if self._num_done < 0.5:
            return _UNMEASURED_RETRY_S
        return min(max(num * self._busy_s / self._num_done, _MIN_RETRY_S), _MAX_RETRY_S)
