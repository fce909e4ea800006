"""A gate before the steps of `light_server` and `gated_server`; a module of its own, for its constant to be set in
whichever of their processes (`ServerProcess(constants=...)`).

With it a test knows that a request still runs, where it could otherwise only hope to be quicker than the engine.
"""

import math
import time
from pathlib import Path

from orcinus.engine.messages import StepPlan

PATH = ""  # a file without which no step comes but those with new requests; without a path all do
CONSTANT = f"{__name__}.PATH"

_POLL_S = 0.005


class StepGate:
    """The test's side of a gate that is open at first. What an engine may do is written in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.constants = {CONSTANT: str(path)}
        self.open()

    def open(self) -> None:
        """Let all steps come at once."""
        self._write("")

    def hold(self, position: int = 0, *, step_s: float = 0.3) -> None:
        """Let a step that goes beyond this position of some request's tokens, prompt included, take so many seconds.

        What is left of the requests must take longer than anything that the test waits for. Between such steps the
        engine takes in new requests, and the word that others are gone. Those with new requests come at once.
        """
        self._write(f"{position} {step_s}")

    def _write(self, content: str) -> None:
        """Replace the file as a whole: an engine reads it at any time."""
        unread = self._path.with_suffix(".new")
        unread.write_text(content)
        unread.replace(self._path)


def wait_at_gate(plan: StepPlan) -> None:
    """Wait as long as the file says that this step has to."""
    if not PATH or plan.new_requests:
        return
    end, started = max((item.end for item in plan.scheduled), default=0), time.monotonic()
    while time.monotonic() < started + _time_of_step_s(end):
        time.sleep(_POLL_S)


def _time_of_step_s(end: int) -> float:
    """Return how long a step to this position has to take: for ever without a file, and no time where it is empty."""
    try:
        content = Path(PATH).read_text()
    except FileNotFoundError:
        return math.inf
    position, step_s = map(float, content.split() or (math.inf, 0.0))
    return step_s if end > position else 0.0
