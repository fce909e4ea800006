"""What may be observed of an engine: one small class to derive from, so that metrics stay out of it."""

from collections.abc import Callable

from orcinus.engine.messages import SlotReport, StepStats
from orcinus.engine.outputs import Outcome, RequestTiming, RequestUsage

SlotListener = Callable[[int, SlotReport, Callable[[str], str | None]], None]
"""Takes an engine's index, what it reports of its slots, and what tells whose a request is, if it is in flight."""


class EngineObserver:
    """Observes nothing. Derived classes override what they want to know.

    Called by `AsyncEngine` on the event loop; a method must not block and must not raise. Times are in seconds.
    """

    def on_step(self, stats: StepStats) -> None:
        """Called after each step of any engine: counts of that step, and gauges of all engines together."""

    def on_engine(self, index: int, *, is_up: bool, stats: StepStats) -> None:
        """Called when an engine begins to load, comes up and ends, and after each step with its own numbers."""

    def on_first_output(self, queue_time_s: float) -> None:
        """Called for the first output of a choice, which had waited `queue_time_s` for its slot.

        An embedding has no tokens, but has a first output.
        """

    def on_first_token(self, ttft_s: float) -> None:
        """Called for the first token of a choice, `ttft_s` after its request was asked (`asked_at`)."""

    def on_next_tokens(self, interval_s: float, num_tokens: int) -> None:
        """Called for `num_tokens` more tokens of a choice, which came `interval_s` after the ones before."""

    def on_choice_done(self, outcome: Outcome, e2e_s: float, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Called once for each admitted choice, `e2e_s` after its request was asked.

        `num_prompt_tokens` is given for the first sample of a prompt, and 0 for its others.
        """

    def on_choice_complete(self, timing: RequestTiming, num_output_tokens: int) -> None:
        """Called once for each choice that came to an end of its own (stop, length), before `on_choice_done`."""

    def on_client_usage(self, client: str, outcome: Outcome, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Called with `on_choice_done`, which has these numbers, too, for the client whose request it was."""

    def on_request_usage(self, usage: RequestUsage) -> None:
        """Called once for each admitted request, when its last choice has ended."""

    def on_restart(self) -> None:
        """Called when an engine has ended and another one is to take its place."""

    def on_resumed(self, num_choices: int) -> None:
        """Called when choices that were in flight when an engine ended are given to its successor."""

    def on_quarantined(self) -> None:
        """Called when a request is given up because engines end while they run it."""
