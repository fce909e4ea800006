"""How much a step may take on beside those who decode: how many prompt tokens, and whether one more request.

Applies rules to what `engine.scheduler.step_time` has learnt. Deals in numbers only: no requests, blocks or clocks.
"""

from orcinus.engine.scheduler.step_time import StepTimeModel

# A stream flows once it has so many tokens. Until then it counts as one of those who wait for their first.
FLOWING_TOKENS = 16
# Prompts get so many tokens whatever they cost, so that they always get on; fewer where that may keep an objective.
_MIN_PROMPT_TOKENS = 16
_MIN_PROMPT_TOKENS_WITHIN = 4
# A little less than what the rules allow: predictions err to both sides.
_SHARE = 0.85
# What decodes may take of an objective, so that there is room for the prompts of those who come next.
_DECODE_SHARE = 0.9


class PrefillBudget:
    """Limits the prompt tokens of a step, and the requests that run, by what steps take.

    With an objective (`target_itl_s`), a step with decodes in it takes at most about as long as that says. Without one,
    prompts take as long as the decodes beside them, or as many times longer as there are more prompts than flowing
    streams: a token takes at most twice its time, unless few requests wait for theirs and many for their first.
    """

    def __init__(self, target_itl_s: float | None = None) -> None:
        self._target_itl_s = target_itl_s
        self._step_time = StepTimeModel()

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn from a step that ran: its decodes, its prompt tokens, and how long it took."""
        self._step_time.observe(num_decodes, num_prompt_tokens, seconds)

    def prompt_tokens(self, *, num_decodes: int, num_flowing: int, num_prompts: int) -> int | None:
        """Return how many prompt tokens a step may compute beside its decodes, some of which flow; None: no limit.

        Now and then it is 0, because what decodes take alone has to be seen.
        """
        if num_decodes == 0 or (self._target_itl_s is None and num_flowing == 0):
            return None
        if not self._step_time.knows_decodes(num_decodes):
            return 0
        decode_s = self._step_time.decode_s(num_decodes)
        if self._target_itl_s is not None:
            at_least = _MIN_PROMPT_TOKENS_WITHIN if decode_s < self._target_itl_s else _MIN_PROMPT_TOKENS
            return self._tokens_in(self._target_itl_s - decode_s, at_least)
        return self._tokens_in(decode_s * max(1.0, num_prompts / num_flowing), _MIN_PROMPT_TOKENS)

    def _tokens_in(self, seconds: float, at_least: int) -> int:
        return max(at_least, self._step_time.prompt_tokens_in(_SHARE * seconds))

    def may_admit(self, num_running: int) -> bool:
        """Return whether one more request could decode beside so many within the objective."""
        if self._target_itl_s is None or num_running == 0:
            return True
        if not self._step_time.has_run(num_running + 1):
            return False
        return self._step_time.decode_s(num_running + 1) <= _DECODE_SHARE * self._target_itl_s
