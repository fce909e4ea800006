"""How long slots are held, by the clock: what a mean over steps, or a gauge that is looked at now and then, misses."""

from collections.abc import Callable


class SlotTime:
    """Integrates the slots that are held over time. Used by one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._num_held = 0
        self._held_s = 0.0
        self._since = self._taken_at = clock()

    def hold(self) -> None:
        """Count a slot as held from now on."""
        self._book()
        self._num_held += 1

    def release(self) -> None:
        """Count a slot as free from now on."""
        self._book()
        self._num_held -= 1

    def take(self) -> tuple[float, float]:
        """Return the slot-seconds that were held since the last call, and the seconds that this was."""
        self._book()
        held_s, passed_s = self._held_s, self._since - self._taken_at
        self._held_s, self._taken_at = 0.0, self._since
        return held_s, passed_s

    def _book(self) -> None:
        now = self._clock()
        self._held_s += self._num_held * (now - self._since)
        self._since = now
