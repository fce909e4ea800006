"""Which replica a call goes to: the one that has most of its prompt cached, unless it is loaded too much.

A request router of Ray Serve, which each ingress has one of. It knows what it sent where, and how many calls Ray counts
at each replica. A wrong guess costs the computation of a prompt.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

# So much more load, in calls for each slot, may be where all of a prompt is cached. Of a part of it, that part.
WORTH_OF_PREFIX = 0.25
_BLOCK_CHARS = 128
_MOST_BLOCKS_OF_CALL = 512
_MOST_BLOCKS = 2**16  # remembered for each replica: some 10 MB


class SentPrefixes:
    """Hashes of the blocks of text that one replica was sent last, a bounded number of them."""

    def __init__(self, most: int = _MOST_BLOCKS) -> None:
        self._most = most
        self._known: OrderedDict[int, None] = OrderedDict()  # the one used longest ago first

    def __len__(self) -> int:
        return len(self._known)

    def add(self, blocks: Sequence[int]) -> None:
        """Note that the replica is sent these: the first ones are forgotten last."""
        for block in reversed(blocks):
            self._known[block] = None
            self._known.move_to_end(block)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def share_of(self, blocks: Sequence[int]) -> float:
        """Return the share of these, from the first one on, that were sent there before: 0 to 1."""
        num_known = next((index for index, block in enumerate(blocks) if block not in self._known), len(blocks))
        return num_known / len(blocks) if blocks else 0.0


def blocks_of(text: str, scope: str) -> list[int]:
    """Return a hash of all text up to the end of each whole block. Different scopes have nothing in common."""
    return [*_blocks(text, scope)]


def _blocks(text: str, scope: str) -> Iterator[int]:
    block = hash(scope)
    for end in range(_BLOCK_CHARS, min(len(text), _BLOCK_CHARS * _MOST_BLOCKS_OF_CALL) + 1, _BLOCK_CHARS):
        block = hash((block, text[end - _BLOCK_CHARS : end]))
        yield block


class PrefixRouter(RequestRouter):
    """Ranks replicas by load less what they have cached; Ray takes the first one that accepts the call.

    The first argument of a call has its `text` and its `scope`. Load is calls for each of `num_slots`.
    """

    def initialize_state(self, num_slots: int = 32) -> None:
        """Take the arguments of `RequestRouterConfig.request_router_kwargs`."""
        self._num_slots = num_slots
        self._sent: dict[ReplicaID, SentPrefixes] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas, best first, each in a rank of its own."""
        blocks = _blocks_of_call(pending_request)

        def cost(replica: RunningReplica) -> float:
            num_calls = self.replica_queue_len_cache.get(replica.replica_id) or 0
            sent = self._sent.get(replica.replica_id)
            cached = 0.0 if sent is None else sent.share_of(blocks)
            return float(num_calls / self._num_slots - WORTH_OF_PREFIX * cached)

        return [[replica] for replica in sorted(candidate_replicas, key=cost)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Note what a replica was sent."""
        self._sent.setdefault(replica_id, SentPrefixes()).add(_blocks_of_call(pending_request))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget what a replica had cached that is gone."""
        super().on_replica_actor_died(replica_id)
        self._sent.pop(replica_id, None)


def _blocks_of_call(pending_request: PendingRequest | None) -> list[int]:
    if pending_request is None or not pending_request.args:
        return []
    call = pending_request.args[0]
    return blocks_of(getattr(call, "text", ""), getattr(call, "scope", ""))
