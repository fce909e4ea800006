"""What is asked for and when: requests of uneven lengths, and the traffic that brings them.

Knows no engine. Times are in seconds since the load began.
"""

import bisect
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from orcinus.server.load.arrivals import arrival_times


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShape:
    """Says how many requests there are, of which lengths in tokens."""

    num_requests: int
    prompt_min: int
    prompt_max: int
    output_mean: float
    output_min: int
    output_max: int
    seed: int


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a load."""

    prompt_token_ids: list[int]
    num_output_tokens: int


def make_load(shape: LoadShape, vocab_size: int) -> list[Item]:
    """Make the requests of a load: the same ones for the same shape, whatever the machine."""
    rng = random.Random(shape.seed)  # noqa: S311 - a load, not a secret
    return [
        Item(
            [rng.randrange(vocab_size) for _ in range(rng.randint(shape.prompt_min, shape.prompt_max))],
            min(max(round(rng.expovariate(1 / shape.output_mean)), shape.output_min), shape.output_max),
        )
        for _ in range(shape.num_requests)
    ]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Says when requests come: all at once, from so many `users`, or at a mean `rate`.

    A user sends the next request when the last one is answered. At a rate, in requests a second, they come as a Poisson
    process, whatever has been answered.
    """

    users: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        if self.users is not None:
            return f"{self.users} user{'s' if self.users > 1 else ''}"
        return "all at once" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that has come. What it is given beyond its own lengths is padding."""

    index: int
    arrived_s: float
    prompt_token_ids: list[int]
    num_tokens: int  # to be computed
    num_counted: int  # of them, the answer's own


class Arrivals:
    """The requests of one run that have yet to be given to the engine, in their order."""

    def __init__(self, load: Sequence[Item], traffic: Traffic, seed: int) -> None:
        self._load = load
        self._users = traffic.users
        rng = random.Random(f"{seed} arrivals")  # noqa: S311 - a load, not a secret
        self._times_s = arrival_times(len(load), math.inf if traffic.rate is None else traffic.rate, 1.0, rng)
        self._num_taken = 0

    @property
    def has_more(self) -> bool:
        return self._num_taken < len(self._load)

    def take(self, elapsed_s: float, num_done: int, *, is_idle: bool) -> list[Arrival]:
        """Return what has come by now and was not taken yet."""
        end = bisect.bisect_right(self._times_s, elapsed_s)
        if self._users is not None:
            end = min(end, num_done + self._users)
        taken = range(self._num_taken, end)
        self._num_taken = max(self._num_taken, end)
        return [self._arrival(index, elapsed_s) for index in taken]

    def wait_s(self, elapsed_s: float) -> float | None:
        """Return the seconds until the next request comes by the clock; None if none does."""
        if not self.has_more:
            return None
        due_s = self._times_s[self._num_taken]
        return due_s - elapsed_s if due_s > elapsed_s else None

    def _arrival(self, index: int, elapsed_s: float) -> Arrival:
        """A request of a user comes when it is taken; at a rate, when it was due, however late it is noticed."""
        item = self._load[index]
        arrived_s = self._times_s[index] if self._users is None else elapsed_s
        return Arrival(index, arrived_s, item.prompt_token_ids, item.num_output_tokens, item.num_output_tokens)
