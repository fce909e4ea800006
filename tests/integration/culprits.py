"""Requests that end or hold up the engine they run in, known by their seeds, and what they do there."""

import os
import signal
import time

from orcinus.engine.messages import StepPlan

FATAL_SEED = 666  # its first step ends the engine
HANGING_SEED = 667  # a step in which it takes part never ends
NUM_TOKENS = 16  # beyond which it happens


class Culprits:
    """Looks at the plans of one engine."""

    def __init__(self) -> None:
        self._seeds: dict[str, int | None] = {}

    def meet(self, plan: StepPlan) -> set[int | None]:
        """Return the seeds of those that are beyond their first tokens. Ends the process for a fatal one."""
        self._seeds.update((new.request_id, new.sampling.seed) for new in plan.new_requests)
        if FATAL_SEED in {new.sampling.seed for new in plan.new_requests}:
            os.kill(os.getpid(), signal.SIGSEGV)
        return {self._seeds[item.request_id] for item in plan.scheduled if item.num_samples and item.end > NUM_TOKENS}


def hang_for(seeds: set[int | None]) -> None:
    """Never return where the one that hangs is among them."""
    if HANGING_SEED in seeds:
        time.sleep(1000)
