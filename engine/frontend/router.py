"""Which of several engines a request goes to. Knows only their load."""

from collections.abc import Sequence

from orcinus.engine.frontend.replica import EngineReplica
from orcinus.engine.outputs import GenerationRequest


class Router:
    """Chooses the replica with the least load: choices in flight for each of its slots."""

    def choose(self, request: GenerationRequest, replicas: Sequence[EngineReplica]) -> EngineReplica:
        """Return the replica that has the least load once it has the request, the first one of several such.

        One whose engine is being replaced is chosen only where no engine is up. One at least must be either.
        """
        up = [replica for replica in replicas if replica.state == "ready"]
        usable = up or [replica for replica in replicas if replica.state == "restarting"]
        assert usable, "nothing is admitted while no engine is up or restarting"
        return min(usable, key=lambda replica: (replica.num_in_flight + request.num_choices) / replica.num_slots)
