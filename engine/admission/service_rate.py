"""How fast slots come free, from which a refused client is told when to come back.

Owns the estimate alone. It is told how many choices are in flight and which of them were served, and knows neither
whose they are nor what they ask for.
"""

import math
import time
from collections.abc import Callable

_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 120.0
_UNSEEN_SERVICE_S = 10.0  # of a choice, before any was served: in the middle between the two, in factors
_ROUNDS = 4  # of all slots that are remembered, however long they took


class ServiceRate:
    """The number of choices served in a second of work; the last half minute counts most.

    A second in which a quarter of the slots was taken is a quarter of a second's work. So what a quiet server did tells
    how fast a full one is, and what it did last is remembered while it is idle. A choice that left its slot in another
    way (its client left, its deadline passed, it failed) does not tell how long a choice takes that stays.
    """

    memory_s = 30.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._as_of = clock()
        self._num_slots = 1
        self._load = 0.0  # the share of the slots that is taken, as far as choices in flight take one each
        self._work_s = 0.0  # up to the last choice that was served
        self._num_served = 0.0
        self._open_s = 0.0  # work since then

    def set_load(self, num_in_flight: int, num_slots: int) -> None:
        """Note that from now on `num_in_flight` choices share `num_slots` slots."""
        self._advance()
        self._num_slots = num_slots
        self._load = min(1.0, num_in_flight / num_slots)

    def on_served(self) -> None:
        """Note that a choice that had a slot got all that it asked for."""
        self._advance()
        keep = self._keep()
        self._work_s = self._work_s * keep + self._open_s
        self._num_served = self._num_served * keep + 1
        self._open_s = 0.0

    def on_unserved(self, num_running: int) -> None:
        """Note that one of `num_running` choices left its slot unserved, and take its part of the work out."""
        self._advance()
        self._open_s *= 1 - 1 / num_running

    def seconds_to_serve(self, num_places: float) -> float:
        """Return the seconds until `num_places` more choices are served, between 1 and 120."""
        self._advance()
        return min(max(self._estimate(num_places), _MIN_RETRY_S), _MAX_RETRY_S)

    def _estimate(self, num_places: float) -> float:
        if self._num_served:
            return num_places * (self._work_s + self._open_s) / self._num_served
        # As if the choices in slots were to end when they have taken as long again, or the usual time.
        return max(_UNSEEN_SERVICE_S, self._open_s) * max(1.0, num_places / self._num_slots)

    def _keep(self) -> float:
        """Return the weight that what is remembered has beside the work since."""
        if self._num_served <= _ROUNDS * self._num_slots:
            return 1.0
        return max(math.exp(-self._open_s / self.memory_s), _ROUNDS * self._num_slots / self._num_served)

    def _advance(self) -> None:
        now = self._clock()
        self._open_s += (now - self._as_of) * self._load
        self._as_of = now
