"""Keeps when what became of a choice, for those who ask for it (`GenerationRequest.on_choice_end`).

All times are of one clock, which the server's process and those of engines share. Knows deltas, and no streams.
"""

import time
from collections.abc import Callable

from orcinus.engine.messages import AddRequest, RequestDelta
from orcinus.engine.outputs import ChoiceTimes, GenerationRequest, Outcome


class ChoiceClock:
    """Takes every delta of a choice, in whichever engines it runs, and its end."""

    def __init__(self, times: ChoiceTimes, on_end: Callable[[ChoiceTimes], None]) -> None:
        self._times = times
        self._on_end = on_end
        self._engine_ended_at: float | None = None

    def on_delta(self, delta: RequestDelta, ended_at: float) -> None:
        """Note what a step that ended then brought."""
        times = self._times
        if delta.queue_time_s is not None:  # the first of this engine
            self._on_first_step(times.arrived_at + delta.queue_time_s)
        if delta.num_cached_tokens is not None and not times.num_output_tokens:
            times.num_cached_tokens = delta.num_cached_tokens
        times.pauses += delta.pauses
        if delta.token_ids and times.first_token_at is None:
            times.first_token_at = ended_at
        times.num_output_tokens += len(delta.token_ids)
        times.ended_at = ended_at

    def on_engine_end(self) -> None:
        """Note that the engine which had the choice has ended; one before it may have, without a step in between."""
        if self._engine_ended_at is None:
            self._engine_ended_at = time.monotonic()

    def on_end(self, outcome: Outcome, num_output_tokens: int) -> None:
        """Hand over the times. What was given up ends now, and not with its last tokens."""
        times = self._times
        times.outcome = outcome
        times.num_output_tokens = num_output_tokens  # less those behind a stop string
        if times.ended_at is None or outcome not in ("stop", "length"):
            times.ended_at = time.monotonic()
        self._on_end(times)

    def _on_first_step(self, scheduled_at: float) -> None:
        if self._times.first_scheduled_at is None:
            self._times.first_scheduled_at = scheduled_at
        if self._engine_ended_at is not None:
            self._times.restarts.append((self._engine_ended_at, scheduled_at))
            self._engine_ended_at = None


def clock_of(request: GenerationRequest, index: int, added: AddRequest) -> ChoiceClock | None:
    """Return what keeps a choice's times, where somebody asks for them."""
    if request.on_choice_end is None:
        return None
    times = ChoiceTimes(index=index, arrived_at=added.arrival_time, num_prompt_tokens=len(added.prompt_token_ids))
    return ChoiceClock(times, request.on_choice_end)
