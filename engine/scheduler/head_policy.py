"""In which steps a model's head for multi-token prediction runs: where its guesses bring more than it costs.

What steps bring with it and without it is learnt apart, as its layer and its logits take time whether a guess is tried
or not. It rests at first, until that time is known, then it runs: for as long as that pays, or until that is known not
to, and then after ever longer rests to see again. Deals in numbers alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from orcinus.engine.scheduler.draft_policy import DraftPolicy

# Steps without the head before the first one with it, and after so many with it: what they take is to be known.
_FIRST_REST = 3
_MAX_RUN = 512
# After so many steps it has to bring so much more; after so few it rests if it brings much less.
_MIN_RUN = 16
_MIN_GAIN = 1.02
_FIRST_STEPS = 3
_HOPELESS = 0.9
# It rests for so many steps where it has never paid, then for twice as many; for fewer where it did for a while.
_PATIENCE = 256
_MAX_PATIENCE = 1024
_LONG_RUN = 64
_SHORT_PATIENCE = 32


@dataclass(slots=True)
class _Use:
    """Remembers what the head does beside about so many decodes, and for how many steps it has done so."""

    runs: bool = False
    num_steps: int = 0
    rest: int = _FIRST_REST
    patience: int = _PATIENCE


class HeadPolicy:
    """Used by one thread. Of drafts of steps in which the head runs `running` decides, and of others `resting`."""

    def __init__(self, make_policy: Callable[[], DraftPolicy]) -> None:
        self.running = make_policy()
        self.resting = make_policy()
        self._uses: dict[int, _Use] = {}  # by about how many requests decode

    def runs_beside(self, num_decodes: int) -> bool:
        """Return whether the head is to run in the next step, beside about so many requests that decode."""
        return self._use_beside(num_decodes).runs

    def observe_step(self, num_decodes: int) -> None:
        """Count a step of decodes alone, with drafts or without, and decide of those that follow."""
        use = self._use_beside(num_decodes)
        use.num_steps += 1
        if not use.runs:
            if use.num_steps >= use.rest:
                use.runs, use.num_steps = True, 0
                self.running.forget_all()
        elif not self._pays(num_decodes, use.num_steps):
            use.patience = _SHORT_PATIENCE if use.num_steps >= _LONG_RUN else use.patience
            use.runs, use.num_steps, use.rest = False, 0, use.patience
            use.patience = min(_MAX_PATIENCE, 2 * use.patience)
        elif use.num_steps >= _MAX_RUN:
            use.runs, use.num_steps, use.rest, use.patience = False, 0, _FIRST_REST, _SHORT_PATIENCE

    def _pays(self, num_decodes: int, num_steps: int) -> bool:
        """Return whether steps with the head bring more tokens a second, or too few are seen to tell."""
        if num_steps < _FIRST_STEPS:
            return True
        running, resting = self.running.tokens_per_s(num_decodes), self.resting.tokens_per_s(num_decodes)
        if running is None or resting is None:
            return num_steps < _MIN_RUN
        return running >= (_MIN_GAIN if num_steps >= _MIN_RUN else _HOPELESS) * resting

    def _use_beside(self, num_decodes: int) -> _Use:
        return self._uses.setdefault(num_decodes.bit_length(), _Use())
