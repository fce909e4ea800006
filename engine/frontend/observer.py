"""Who watches the engine: one small interface, so that metrics stay out of it."""

from typing import Protocol

from orcinus.engine.messages import StepStats
from orcinus.engine.outputs import Outcome


class EngineObserver(Protocol):
    """Called by `AsyncEngine` on the event loop; must not block and must not raise. Times are in seconds."""

    def on_step(self, stats: StepStats) -> None: ...

    def on_first_output(self, queue_time_s: float) -> None:
        """Of a choice that waited so long for its slot. An embedding has no token, and comes here all the same."""

    def on_first_token(self, ttft_s: float) -> None: ...

    def on_next_tokens(self, interval_s: float, num_tokens: int) -> None:
        """`num_tokens` arrived `interval_s` after the ones before."""

    def on_choice_done(self, outcome: Outcome, e2e_s: float, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Once for each admitted choice, and once for each choice of a refused request ("rejected").

        `num_prompt_tokens` is given for the first sample of a prompt, and 0 for its others.
        """

    def on_restart(self) -> None:
        """The engine has ended, and another one takes its place."""

    def on_resumed(self, num_choices: int) -> None:
        """So many choices that were in flight when an engine ended were given to another one."""

    def on_quarantined(self) -> None:
        """A request was given up because engines end while they run it."""


class NullObserver:
    """Watches nothing."""

    def on_step(self, stats: StepStats) -> None: ...

    def on_first_output(self, queue_time_s: float) -> None: ...

    def on_first_token(self, ttft_s: float) -> None: ...

    def on_next_tokens(self, interval_s: float, num_tokens: int) -> None: ...

    def on_choice_done(
        self, outcome: Outcome, e2e_s: float, num_prompt_tokens: int, num_output_tokens: int
    ) -> None: ...

    def on_restart(self) -> None: ...

    def on_resumed(self, num_choices: int) -> None: ...

    def on_quarantined(self) -> None: ...
