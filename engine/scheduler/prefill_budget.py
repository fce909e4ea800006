"""How much a step may take on beside those who decode: how many prompt tokens, and whether one more request.

Applies rules to what `engine.scheduler.step_time` has learnt. Deals in numbers only: no requests, blocks or clocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from orcinus.engine.scheduler.step_time import StepTimeModel

# A stream flows once it has so many tokens. Until then it counts as one of those who wait for their first.
FLOWING_TOKENS = 16
# Without an objective for the time between two tokens a step with prompts takes so long at most, which is about a word
# at the speed of reading; or so many times as long as with hardly any prompt in it, where that is more: on a slow
# machine prompts would have too small a share of it, and those that wait would never get less.
_LONGEST_STEP_S = 0.24
_LONGEST_STEP_OVER_DECODES = 4
# Prompts get so many tokens whatever they cost, so that they always get on; fewer where that may keep an objective.
_MIN_PROMPT_TOKENS = 16
_MIN_PROMPT_TOKENS_WITHIN = 4
# A little less than what the rules allow: predictions err to both sides.
_SHARE = 0.85
# What decodes may take of an objective, so that there is room for the prompts of those who come next.
_DECODE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class PendingPrompt:
    """A prompt that has a slot: its tokens that are not computed, and how long its request has waited."""

    num_tokens: int
    waited_s: float


class PrefillBudget:
    """Limits the prompt tokens of a step, and the requests that run, by what steps take.

    Prompts take as long as the decodes beside them, or as many times longer as there are more prompts than flowing
    streams. They take longer where that lets them end within `target_ttft_s` of their arrival, or where the fixed cost
    of a step with prompts would be most of what they take; but no step takes longer than `target_itl_s`, as far as is
    known. With that objective requests wait, too, if one decode more would not keep to it.
    """

    def __init__(self, target_itl_s: float | None = None, target_ttft_s: float = 0.5) -> None:
        self._target_itl_s = target_itl_s
        self._target_ttft_s = target_ttft_s
        self._step_time = StepTimeModel()

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn from a step that ran: its decodes, its prompt tokens, and how long it took."""
        self._step_time.observe(num_decodes, num_prompt_tokens, seconds)

    @property
    def prompt_token_s(self) -> float:
        """The time that one more prompt token takes; 0 where nothing is known."""
        return self._step_time.chunks.token_s

    def prompt_tokens(self, *, num_decodes: int, num_flowing: int, prompts: Sequence[PendingPrompt]) -> int | None:
        """Return how many tokens of prompts a step may compute beside its decodes, some of which flow; None: no limit.

        The prompts come in the order in which they are computed. Now and then it is 0, because what decodes take alone
        has to be seen.
        """
        if num_decodes == 0 or (self._target_itl_s is None and num_flowing == 0):
            return None
        if not self._step_time.knows_decodes(num_decodes):
            return 0
        chunks, decode_s = self._step_time.chunks, self._step_time.decode_s(num_decodes)
        most = chunks.tokens_in(_SHARE * (self._longest_step_s(decode_s) - decode_s))
        wanted = max(
            chunks.tokens_in(_SHARE * decode_s * max(1.0, len(prompts) / max(1, num_flowing))),
            chunks.amortising_tokens,
            chunks.telling_tokens if chunks.telling_tokens <= most else 0,
            self._tokens_in_time(decode_s, prompts, most),
        )
        return max(self._least(decode_s), min(most, _without_rest(wanted, sum(p.num_tokens for p in prompts))))

    def known_tokens(self, num_decodes: int) -> int:
        """Return how many known tokens may be computed beside so many decodes, as part of some of them.

        They cost what a prompt's do, and what they may make a step take is the same.
        """
        chunks, decode_s = self._step_time.chunks, self._step_time.decode_s(num_decodes)
        return max(self._least(decode_s), chunks.tokens_in(_SHARE * (self._longest_step_s(decode_s) - decode_s)))

    def may_admit(self, num_running: int) -> bool:
        """Return whether one more request could decode beside so many within the objective."""
        if self._target_itl_s is None or num_running == 0:
            return True
        if not self._step_time.has_run(num_running + 1):
            return False
        return self._step_time.decode_s(num_running + 1) <= _DECODE_SHARE * self._target_itl_s

    def _longest_step_s(self, decode_s: float) -> float:
        if self._target_itl_s is not None:
            return self._target_itl_s
        return max(_LONGEST_STEP_S, _LONGEST_STEP_OVER_DECODES * (decode_s + self._step_time.chunks.fixed_s))

    def _least(self, decode_s: float) -> int:
        if self._target_itl_s is not None and decode_s < self._target_itl_s:
            return _MIN_PROMPT_TOKENS_WITHIN
        return _MIN_PROMPT_TOKENS

    def _tokens_in_time(self, decode_s: float, prompts: Sequence[PendingPrompt], most: int) -> int:
        """Return the least tokens a step, `most` at most, with which all prompts are computed within the objective.

        R tokens in chunks of k take R / k steps, each with its decodes and the fixed cost of a chunk, and R times what
        one token takes.
        """
        chunks, num_tokens, needed = self._step_time.chunks, 0, 0.0
        for prompt in prompts:
            num_tokens += prompt.num_tokens
            spare_s = self._target_ttft_s - prompt.waited_s - num_tokens * chunks.token_s
            if spare_s <= 0.0:
                return most
            needed = max(needed, num_tokens * (decode_s + chunks.fixed_s) / spare_s)
        return min(most, int(needed))


def _without_rest(num_tokens: int, num_pending: int) -> int:
    """Return a larger chunk, below twice as large, such that chunks of that size leave no small rest of what waits."""
    if not 0 < num_tokens < num_pending:
        return num_tokens
    return -(-num_pending // (num_pending // num_tokens))
