"""A gate before the steps of `light_server` and `gated_server`; a module of its own, for its constant to be set in
whichever of their processes (`ServerProcess(constants=...)`).

With it a test knows that a request still runs, where it could otherwise only hope to be quicker than the engine.
"""

import time
from pathlib import Path

from orcinus.engine.messages import StepPlan

PATH = ""  # a file without which no step comes but those with new requests; without a path all do
CONSTANT = f"{__name__}.PATH"

_SLOW_STEP_S = 1.0  # so that a hundred tokens last longer than a test waits for anything
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

    def hold(self, position: int = 0) -> None:
        """Let a step that goes beyond this position of some request's tokens, prompt included, take a second.

        Between such steps the engine takes in new requests, and the word that others are gone. Those with new requests
        come at once.
        """
        self._write(str(position))

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
    while (position := _position()) is None or (end > position and time.monotonic() < started + _SLOW_STEP_S):
        time.sleep(_POLL_S)


def _position() -> float | None:
    """Return how far requests may go at full speed: None without a file, and any distance where nothing is in it."""
    try:
        content = Path(PATH).read_text()
    except FileNotFoundError:
        return None
    return float(content or "inf")
