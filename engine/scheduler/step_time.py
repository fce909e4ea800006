"""How long steps take, learnt from the latest ones: those of decodes alone, and each prompt token beside them.

Medians over short windows: one step that something foreign held up changes nothing, and what lasts is known a few
steps later. Nothing is measured beforehand. Knows nothing of requests, policy or clocks: it is told what a step held
and how long it took.
"""

import statistics
from collections import deque
from dataclasses import dataclass
from functools import cached_property

_WINDOW = 16
_NUM_NEAREST = 5
_MAX_AGE = 64  # in steps; the latest one counts however old it is
# Steps with this share more or fewer decodes tell what so many take: the first rows of a step are nearly free.
_ALIKE = 1 / 3
# And to admit more on trust, they have to be nearer still.
_NEARLY = 1 / 8
# Chunks whose sizes differ by this share tell what one more token costs.
_APART = 1 / 4
# A chunk is at most so many times larger than those of late: beyond that nothing is known.
_CHUNK_GROWTH = 2
# Each step of decodes alone vouches for so many with prompts beside them; together they do for no more than the limit.
_STEPS_BESIDE = 8
_MAX_STEPS_BESIDE = 32


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    num_decodes: int
    num_prompt_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The prompt tokens of a step, and how much longer it took for them."""

    num_tokens: float
    seconds: float


class StepTimeModel:
    """Models a step's time as that of its decodes alone, and more for each prompt token."""

    def __init__(self) -> None:
        self._alone: deque[_Step] = deque(maxlen=_WINDOW)  # decodes
        self._mixed: deque[_Step] = deque(maxlen=_WINDOW)  # prompts, and decodes beside them if any
        self._num_steps_beside = 0  # prompts, since decodes ran alone
        self._num_steps = 0

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn from a step that ran."""
        self.__dict__.pop("_chunk_costs", None)
        self._num_steps += 1
        step = _Step(self._num_steps, num_decodes, num_prompt_tokens, seconds)
        if num_prompt_tokens == 0:
            self._alone.append(step)
            self._num_steps_beside = 0
        else:
            self._mixed.append(step)
            self._num_steps_beside += num_decodes > 0
        while len(self._alone) > 1 and self._alone[0].number < self._num_steps - _MAX_AGE:
            self._alone.popleft()

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
        _, token_s = self._chunk_costs
        return statistics.median(step.seconds + (num_decodes - step.num_decodes) * token_s for step in nearest)

    def prompt_tokens_in(self, seconds: float) -> int:
        """Return how many prompt tokens take so much more time, as far as that is known."""
        large, token_s = self._chunk_costs
        most = _CHUNK_GROWTH * large.num_tokens
        fitting = large.num_tokens + (seconds - large.seconds) / token_s if token_s > 0.0 else most
        return int(min(most, fitting))

    def _nearest(self, num_decodes: int) -> list[_Step]:
        """Return the steps of decodes alone to judge by: those with about so many, the latest first; at least one."""
        by_distance = sorted(self._alone, key=lambda step: (abs(step.num_decodes - num_decodes), -step.number))
        alike = [step for step in by_distance if _are_alike(step.num_decodes, num_decodes)]
        return alike[:_NUM_NEAREST] or by_distance[:1]

    @cached_property
    def _chunk_costs(self) -> tuple[_Chunk, float]:
        """Return what a large chunk and one more token take: a line through the medians of small and large chunks."""
        if not self._mixed:
            return _Chunk(0, 0.0), 0.0
        alone_s = {count: self._alone_s(count) for count in {step.num_decodes for step in self._mixed}}
        chunks = sorted(
            (
                _Chunk(step.num_prompt_tokens, max(0.0, step.seconds - alone_s[step.num_decodes]))
                for step in self._mixed
            ),
            key=lambda chunk: chunk.num_tokens,
        )
        small, large = _median(chunks[: (len(chunks) + 1) // 2]), _median(chunks[len(chunks) // 2 :])
        if large.num_tokens < small.num_tokens * (1 + _APART) or large.seconds <= small.seconds:
            return large, large.seconds / large.num_tokens
        return large, (large.seconds - small.seconds) / (large.num_tokens - small.num_tokens)

    def _alone_s(self, num_decodes: int) -> float:
        nearest = self._nearest(num_decodes)
        return statistics.median(step.seconds for step in nearest) if nearest else 0.0


def _are_alike(num_decodes: int, other: int) -> bool:
    return abs(num_decodes - other) <= max(1.0, other * _ALIKE)


def _median(chunks: list[_Chunk]) -> _Chunk:
    return _Chunk(
        statistics.median(chunk.num_tokens for chunk in chunks), statistics.median(chunk.seconds for chunk in chunks)
    )
