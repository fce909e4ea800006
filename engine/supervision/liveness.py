"""When an engine counts as stuck, and how often it is replaced: rules about numbers, without clocks and processes.

Silence is counted in ticks of the listener, and not taken from a clock: a listener that was stopped itself, or a
machine that slept, could not have heard anything meanwhile. The engine counts its own stalls in the same way.
"""

from orcinus.engine.messages import Alive, FromEngine

TICK_S = 1.0
SILENCE_S = 10.0  # that an engine may keep
LOADING_SILENCE_S = 30.0  # while it loads; not the first one, which may read everything from a slow disk
_MAX_DELAY_S = 30.0


class LivenessMonitor:
    """Watches the messages of one engine. `failure` tells why the engine has to be ended, once it has to be.

    An engine that `is_silent` may have been stopped from outside: one that is stuck in a step says so.
    """

    def __init__(self, step_timeout_s: float, *, is_first: bool) -> None:
        """With a `step_timeout_s` of 0 a step may take for ever."""
        self.failure: str | None = None
        self.is_silent = False
        self._step_timeout_s = step_timeout_s
        self._limit_s = None if is_first else LOADING_SILENCE_S
        self._num_silent_ticks = 0

    def on_message(self, message: FromEngine) -> None:
        """Take a message as a sign of life, and its word on how long the engine has been in its step."""
        self._num_silent_ticks = 0
        if isinstance(message, Alive) and 0 < self._step_timeout_s <= message.stalled_s:
            self.failure = f"a step did not end within {self._step_timeout_s:g} s (step_timeout_s)"

    def on_loaded(self) -> None:
        """Apply the limit for engines that run: from here on it has no reason to be silent for long."""
        self._limit_s = SILENCE_S
        self._num_silent_ticks = 0

    def tick(self) -> None:
        """Count a second in which the engine could have been heard."""
        self._num_silent_ticks += 1
        if self.failure is None and self._limit_s is not None and self._num_silent_ticks * TICK_S > self._limit_s:
            self.is_silent = True
            self.failure = f"it gave no sign of life for {self._limit_s:g} s"


class Backoff:
    """Says how long to wait before the next engine: not at all, then 1, 2, 4 ... 30 s while they end without use."""

    def __init__(self, max_restarts: int) -> None:
        """`max_restarts` counts those in a row after engines that were of no use; 0: none is restarted at all."""
        self._max_restarts = max_restarts
        self.num_useless = 0  # engines in a row

    def next_delay_s(self, *, was_useful: bool) -> float | None:
        """Return the seconds to wait after an engine that ended, or None where it is not to be replaced."""
        self.num_useless = 0 if was_useful else self.num_useless + 1
        if self._max_restarts == 0 or self.num_useless > self._max_restarts:
            return None
        return 0.0 if self.num_useless < 2 else min(2.0 ** (self.num_useless - 2), _MAX_DELAY_S)
