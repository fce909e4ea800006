"""How long steps take, learnt from the latest ones: those of decodes alone, and what chunks of prompts add to them.

Medians over short windows: one step that something foreign held up changes nothing, and what lasts is known a few
steps later. Nothing is measured beforehand. Knows nothing of requests, policy or clocks: it is told what a step held
and how long it took.
"""

import statistics
from collections import deque
from dataclasses import dataclass

from orcinus.engine.scheduler.chunk_costs import ChunkCosts

_WINDOW = 16
_NUM_NEAREST = 5
_MAX_AGE = 64  # in steps; the latest one counts however old it is
# Steps with this share more or fewer decodes tell what so many take: the first rows of a step are nearly free.
_ALIKE = 1 / 3
# And to admit more on trust, they have to be nearer still.
_NEARLY = 1 / 8
# Each step of decodes alone vouches for so many with prompts beside them; together they do for no more than the limit.
_STEPS_BESIDE = 8
_MAX_STEPS_BESIDE = 32


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    num_decodes: int
    num_prompt_tokens: int
    seconds: float


class StepTimeModel:
    """Models a step's time as that of its decodes alone, and what its prompt tokens add to that (`chunks`)."""

    def __init__(self) -> None:
        self.chunks = ChunkCosts()
        self._alone: deque[_Step] = deque(maxlen=_WINDOW)  # decodes
        self._early: list[_Step] = []  # with prompts, before decodes ran alone
        self._num_steps_beside = 0  # prompts, since decodes ran alone
        self._num_steps = 0

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn from a step that ran."""
        self._num_steps += 1
        step = _Step(self._num_steps, num_decodes, num_prompt_tokens, seconds)
        if num_prompt_tokens == 0:
            self._observe_alone(step)
        elif self._alone:
            self._observe_chunk(step)
        else:
            self._early = [*self._early[1 - _WINDOW :], step]
        self._num_steps_beside += num_decodes > 0 and num_prompt_tokens > 0
        while len(self._alone) > 1 and self._alone[0].number < self._num_steps - _MAX_AGE:
            self._alone.popleft()

    def _observe_alone(self, step: _Step) -> None:
        self._alone.append(step)
        self._num_steps_beside = 0
        for early in self._early:
            self._observe_chunk(early)
        self._early.clear()

    def _observe_chunk(self, step: _Step) -> None:
        self.chunks.observe(step.num_prompt_tokens, step.seconds - self.decode_s(step.num_decodes))

    def knows_decodes(self, num_decodes: int) -> bool:
        """Return whether about so many decodes ran alone lately. If not, a step of them should."""
        vouched = _STEPS_BESIDE * sum(_are_alike(step.num_decodes, num_decodes) for step in self._alone)
        return self._num_steps_beside < min(vouched, _MAX_STEPS_BESIDE)

    def has_run(self, num_decodes: int) -> bool:
        """Return whether so many decodes, or nearly, ran alone lately."""
        nearly = num_decodes - max(1, int(num_decodes * _NEARLY))
        return any(step.num_decodes >= nearly for step in self._alone)

    def decode_s(self, num_decodes: int) -> float:
        """Return how long decodes alone take; one more or less counts as a prompt token does. 0: nothing is known."""
        nearest = self._nearest(num_decodes)
        if not nearest:
            return 0.0
        token_s = self.chunks.token_s
        return statistics.median(step.seconds + (num_decodes - step.num_decodes) * token_s for step in nearest)

    def _nearest(self, num_decodes: int) -> list[_Step]:
        """Return the steps of decodes alone to judge by: those with about so many, the latest first; at least one."""
        by_distance = sorted(self._alone, key=lambda step: (abs(step.num_decodes - num_decodes), -step.number))
        alike = [step for step in by_distance if _are_alike(step.num_decodes, num_decodes)]
        return alike[:_NUM_NEAREST] or by_distance[:1]


def _are_alike(num_decodes: int, other: int) -> bool:
    return abs(num_decodes - other) <= max(1.0, other * _ALIKE)
