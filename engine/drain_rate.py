"""How fast requests leave, from which a refused client is told when to come back."""

import math

_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 120.0
_UNMEASURED_RETRY_S = 10.0


class DrainRate:
    """Choices finished per second of busy time, the last half minute counting most."""

    memory_s = 30.0

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._num_finished = 0.0

    def observe(self, busy_s: float, num_finished: int) -> None:
        keep = math.exp(-busy_s / self.memory_s)
        self._busy_s = self._busy_s * keep + busy_s
        self._num_finished = self._num_finished * keep + num_finished

    def time_for(self, num_choices: int) -> float:
        """Seconds until so many more choices will have finished, between 1 and 120."""
        if self._num_finished < 0.5:
            return _UNMEASURED_RETRY_S
        return min(max(num_choices * self._busy_s / self._num_finished, _MIN_RETRY_S), _MAX_RETRY_S)
