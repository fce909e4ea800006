"""A gate before the steps of `light_server`, in whichever of its processes; a module of its own, for its constant to be
set there (`ServerProcess(constants=...)`)."""

import time
from pathlib import Path

from orcinus.engine.messages import StepPlan

PATH = ""  # a file without which no step comes but those with new requests; without a path all do
CONSTANT = f"{__name__}.PATH"

_POLL_S = 0.005


def wait_at_gate(plan: StepPlan) -> None:
    while PATH and not plan.new_requests and not Path(PATH).exists():
        time.sleep(_POLL_S)
