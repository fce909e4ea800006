"""All requests without a slot: clients share the engine fairly, and the requests of each keep their order.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): every client has a
counter of the service it had, and the client that had least goes next. What a client leaves unused is lost to it, so
that no client saves up for a flood. Knows nothing of keys, slots and blocks; for one client it is a `WaitingQueue`.
"""

from collections import defaultdict
from collections.abc import Sequence

from orcinus.engine.scheduler.request import Request
from orcinus.engine.scheduler.waiting_queue import WaitingQueue

# The service that a token is: a prompt's are computed many at a time, each generated one takes a step.
PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2

MAX_IDLE_CLIENTS = 1024  # whose service is remembered


class FairQueue:
    """Orders clients by service, and the requests of one by priority and arrival (at most `max_wait_s` behind others).

    Requests that had a slot before, here or in an earlier engine, go before all that had none: their text is being
    read. `priority` and `max_wait_s` count among the requests of one client alone: however long the queue of one
    client is, the other clients get their turns.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._queues: dict[str, WaitingQueue] = {}  # of the clients who wait
        self._service: defaultdict[str, int] = defaultdict(int)
        self._joined: dict[str, int] = {}  # when a client who waits began to, as a count of those who did
        self._num_joined = 0
        self._last_to_leave = ""
        self._begun: dict[str, Request] = {}  # those who wait and had a slot before

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __contains__(self, request_id: str) -> bool:
        return any(request_id in queue for queue in self._queues.values())

    def service_of(self, client: str) -> int:
        """Return the service a client had, in weighted tokens. It means something beside that of others only."""
        return self._service.get(client, 0)

    def push(self, request: Request) -> None:
        if request.client not in self._queues:
            self._join(request.client)
        self._queues[request.client].push(request)
        if request.had_slot:
            self._begun[request.request_id] = request

    def peek(self, now: float) -> Request | None:
        """Return the request whose turn it is, or None if none waits."""
        if not self._queues:
            return None
        begun = self._next_begun(now) if self._begun else None
        return begun or self._queues[self._next_client()].peek(now)

    def take(self, request: Request) -> None:
        """Remove a request that gets a slot. Charge its prompt, once, without what the prefix cache had of it."""
        if not request.had_slot:
            num_tokens = max(0, request.num_prompt_tokens - request.num_computed_tokens)
            self._service[request.client] += PROMPT_WEIGHT * num_tokens
        self.remove(request)

    def charge_output(self, request: Request, num_tokens: int) -> None:
        """Charge generated tokens to a request's client. Called for every running request in every step."""
        self._service[request.client] += OUTPUT_WEIGHT * num_tokens

    def remove(self, request: Request) -> None:
        client = request.client
        self._begun.pop(request.request_id, None)
        self._queues[client].remove(request)
        if not self._queues[client]:
            del self._queues[client], self._joined[client]
            self._last_to_leave = client

    def by_service(self, running: Sequence[Request]) -> list[Request]:
        """Return requests ordered by their client's service, the least first: the last one is the first to make room.

        The requests of one client stay in the order given, which between clients says nothing.
        """
        shares: dict[str, list[Request]] = {}
        for request in running:
            shares.setdefault(request.client, []).append(request)
        clients = sorted((self.service_of(client), share[0].arrival, client) for client, share in shares.items())
        return [request for *_, client in clients for request in shares[client]]

    def oldest(self) -> Request | None:
        """Return the request that has waited longest."""
        oldest = (queue.oldest() for queue in self._queues.values())
        return min((request for request in oldest if request is not None), key=_queued_since, default=None)

    def _join(self, client: str) -> None:
        """Begin to serve a client that had nothing waiting: lift it to the least service of those that have."""
        floor = self._service.get(self._next_client() if self._queues else self._last_to_leave, 0)
        self._service[client] = max(self._service.get(client, 0), floor)
        self._num_joined += 1
        self._joined[client] = self._num_joined
        self._queues[client] = WaitingQueue(self._max_wait_s)
        self._forget_idle()

    def _next_client(self) -> str:
        return min(self._queues, key=self._turn)

    def _turn(self, client: str) -> tuple[int, int]:
        """Return the key that orders clients: the least service first; among equals, the longest wait."""
        return self._service.get(client, 0), self._joined[client]

    def _next_begun(self, now: float) -> Request | None:
        heads = [self._queues[client].peek(now) for client in {request.client for request in self._begun.values()}]
        begun = [head for head in heads if head is not None and head.request_id in self._begun]
        return min(begun, key=lambda request: self._turn(request.client), default=None)

    def _forget_idle(self) -> None:
        """Forget the idle clients that had least service: a client that comes back is lifted to more than that."""
        if len(self._service) - len(self._queues) <= MAX_IDLE_CLIENTS:
            return
        idle = self._service.keys() - self._queues.keys() - {self._last_to_leave}
        for client in sorted(idle, key=self.service_of)[: -MAX_IDLE_CLIENTS // 2]:
            del self._service[client]


def _queued_since(request: Request) -> float:
    return request.queued_since
