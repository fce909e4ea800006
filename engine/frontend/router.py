"""Which of several engines a request goes to. Knows their load, and what they have probably cached."""

from collections.abc import Sequence

from orcinus.engine.frontend.prefix_index import Scope
from orcinus.engine.frontend.replica import EngineReplica

# So much more load, in slots for each slot, may be where all of a prompt is cached. Of a part of it, that part.
_WORTH_OF_PREFIX = 0.25


class Router:
    """Chooses the replica that has most of the prompts cached, unless it is loaded too much.

    Load is choices in flight for each slot, with those of the request. A replica with slots for all of them comes
    before one where some would wait, whatever is cached there. Among such, what is cached counts against load: a
    replica is chosen for the share of the prompts that it has cached while its load is less than a quarter of that
    share above the load of another one.
    """

    def choose(
        self, prompts: Sequence[Sequence[int]], scope: Scope, num_choices: int, replicas: Sequence[EngineReplica]
    ) -> EngineReplica:
        """Return the replica for a request, the first one of several that are as good, and have it note the prompts.

        One whose engine is being replaced is chosen only where no engine is up. One at least must be either.
        """
        up = [replica for replica in replicas if replica.state == "ready"]
        usable = up or [replica for replica in replicas if replica.state == "restarting"]
        assert usable, "nothing is admitted while no engine is up or restarting"
        num_tokens = max(1, sum(map(len, prompts)))

        def cost(replica: EngineReplica) -> tuple[bool, float]:
            load = (replica.num_in_flight + num_choices) / replica.num_slots
            num_cached = sum(replica.prefixes.num_cached(prompt, scope) for prompt in prompts)
            return load > 1, load - _WORTH_OF_PREFIX * num_cached / num_tokens

        chosen = min(usable, key=cost)
        for prompt in prompts:
            chosen.prefixes.add(prompt, scope)
        return chosen
