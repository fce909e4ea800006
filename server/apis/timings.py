"""Where a request's time went, for whoever asks: the header of whole answers and an extension of the usage.

The header is `Server-Timing` (https://www.w3.org/TR/server-timing/), durations in milliseconds.
"""

from typing import Any

from orcinus.engine.outputs import RequestTiming


class Timings:
    """The times of one request's choices. The slowest choice counts for each time, the sum for each number."""

    def __init__(self) -> None:
        self._choices: list[RequestTiming] = []

    def add(self, timing: RequestTiming) -> None:
        self._choices.append(timing)

    def to_dict(self, num_cached_tokens: int) -> dict[str, Any]:
        """Return the times in seconds. `num_cached_tokens` is what the usage counts: each prompt once."""
        return {
            "queue_time_s": self._longest("queue_time_s"),
            "prefill_time_s": self._longest("prefill_time_s"),
            "decode_time_s": self._longest("decode_time_s"),
            "cached_tokens": num_cached_tokens,
            "preemptions": sum(timing.num_preemptions for timing in self._choices),
        }

    def to_header(self, num_cached_tokens: int) -> str:
        values = self.to_dict(num_cached_tokens)
        durations = [f"{name};dur={values[f'{name}_time_s'] * 1000:.3f}" for name in ("queue", "prefill", "decode")]
        counts = [f"{name};desc={values[name]}" for name in ("cached_tokens", "preemptions")]
        return ", ".join(durations + counts)

    def _longest(self, name: str) -> float:
        return max((getattr(timing, name) for timing in self._choices), default=0.0)
