"""What happens in a run, decided beforehand by a seed: who asks what, how they read it, and when the engine is hit.

A run is a row of rounds; after each the server must be as if nothing had been. Pure: knows no server and no clock.
Faults come after a number of answers, and not at a time, so that a slow machine runs the same plan.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.chaos.bad_input import BAD_INPUTS, GARBAGE
from tests.chaos.bodies import LONG_KINDS, Ask, make_catalogue

Manner = Literal[
    "whole",
    "stream",
    "slow stream",
    "leave stream",
    "leave whole",
    "deadline",
    "deadline header",
    "bad",
    "garbage",
]
FaultKind = Literal["kill", "freeze", "pause"]

_IMPATIENT: tuple[Manner, ...] = ("leave stream", "leave stream", "leave whole", "deadline", "deadline header")
NUM_KEYS = 2
NUM_CLIENTS = 7
_GOOD_SHARE = 0.85  # of what the clients of a round ask, more or less
_BAD_PER_ROUND = 4  # at least, more or less: each kind of bad input comes in time
_PERIOD = 5  # rounds: one with a crowd, one with a freeze, which takes long to be found, and one with a pause


@dataclass(frozen=True, slots=True)
class Request:
    """`target` is a place in the catalogue, in `BAD_INPUTS` or in `GARBAGE`, as `manner` says.

    `patience` is what the client bears: the events until it leaves, its seconds, or those of its deadline.
    """

    number: int
    manner: Manner
    target: int
    key: int = 0
    patience: float = 0.0


@dataclass(frozen=True, slots=True)
class Burst:
    """Requests that come all at once, when `after` others have ended."""

    after: int
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Done to the engine process `delay_s` after so many requests have ended. A pause is over before it is noticed."""

    after: int
    delay_s: float
    kind: FaultKind


@dataclass(frozen=True, slots=True)
class Round:
    """`clients` ask one request after the other. Where nobody leaves, all counters can be told exactly."""

    number: int
    clients: tuple[tuple[Request, ...], ...]
    bursts: tuple[Burst, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def requests(self) -> list[Request]:
        asked = [request for client in self.clients for request in client]
        return asked + [request for burst in self.bursts for request in burst.requests]


@dataclass(frozen=True, slots=True)
class Plan:
    """`rounds` never ends: whoever runs it says when."""

    seed: int
    catalogue: tuple[Ask, ...]
    per_client: int = 8
    has_faults: bool = True

    def rounds(self) -> Iterator[Round]:
        number = 0
        while True:
            yield self.round(number)
            number += 1

    def round(self, number: int) -> Round:
        """Every other one has clients who leave; the first has no faults."""
        rng = random.Random(f"{self.seed}/{number}")
        num_asked = NUM_CLIENTS * self.per_client
        draw = _Drawing(rng, self.catalogue, round(number * num_asked * _GOOD_SHARE), number * _BAD_PER_ROUND)
        has_leavers = number % 2 == 1
        clients = tuple(
            tuple(draw.leaver() if has_leavers and rng.random() < 0.4 else draw.any() for _ in range(self.per_client))
            for _ in range(NUM_CLIENTS)
        )
        bursts: list[Burst] = []
        if number % 3 == 2:
            bursts.append(Burst(rng.randrange(num_asked // 2), draw.burst(30)))
        if number % _PERIOD == 0:
            bursts.append(Burst(0, draw.crowd(6)))
        return Round(number, clients, tuple(bursts), self._faults(rng, number, num_asked))

    def _faults(self, rng: random.Random, number: int, num_asked: int) -> tuple[Fault, ...]:
        if number == 0 or not self.has_faults:
            return ()
        kinds: list[FaultKind] = ["kill"] * rng.randint(1, 2)
        if number % _PERIOD == 3:
            kinds.append("freeze")
        if number % _PERIOD == 4:
            kinds.append("pause")
        rng.shuffle(kinds)
        moments = sorted(rng.sample(range(2, num_asked * 3 // 4), len(kinds)))
        return tuple(
            Fault(after, round(rng.uniform(0, 0.6), 3), kind) for after, kind in zip(moments, kinds, strict=True)
        )


def make_plan(seed: int, *, num_bodies: int, per_client: int = 8, has_faults: bool = True) -> Plan:
    return Plan(seed, make_catalogue(random.Random(f"{seed}/bodies"), num_bodies), per_client, has_faults)


def places_of(kinds: Collection[str], catalogue: Sequence[Ask]) -> list[int]:
    return [place for place, ask in enumerate(catalogue) if ask.kind in kinds]


class _Drawing:
    """Requests at random, numbered as they are drawn. What is asked comes in turn, and so do bad ones."""

    def __init__(
        self, rng: random.Random, catalogue: tuple[Ask, ...], num_good_before: int, num_bad_before: int
    ) -> None:
        self._rng = rng
        self._catalogue = catalogue
        self._num_good = num_good_before
        self._num_bad = num_bad_before
        self._long = places_of(LONG_KINDS, catalogue)
        self._num_drawn = 0

    def any(self) -> Request:
        """Good or bad, and read to its end."""
        share = self._rng.random()
        if share > _GOOD_SHARE:
            self._num_bad += 1
            if share > 0.97:
                return self._make("garbage", self._num_bad % len(GARBAGE))
            return self._make("bad", self._num_bad % len(BAD_INPUTS))
        self._num_good += 1
        target = self._num_good % len(self._catalogue)
        if not self._catalogue[target].can_stream:
            return self._make("whole", target)
        return self._make(self._rng.choices(("whole", "stream", "slow stream"), (4, 5, 1))[0], target)

    def leaver(self) -> Request:
        """Make a client that leaves, or does not wait for long."""
        target = self._rng.choice(self._long)
        manner = self._rng.choice(_IMPATIENT)
        match manner:
            case "leave stream":
                return self._make(manner, target, self._rng.randint(1, 30))
            case "leave whole":
                return self._make(manner, target, round(self._rng.uniform(0.01, 1.0), 3))
            case _:
                return self._make(manner, target, round(self._rng.uniform(0.02, 0.6), 3))

    def burst(self, size: int) -> tuple[Request, ...]:
        places = [place for place, ask in enumerate(self._catalogue) if ask.can_stream]
        return tuple(self._make(self._rng.choice(("whole", "stream")), self._rng.choice(places)) for _ in range(size))

    def crowd(self, size: int) -> tuple[Request, ...]:
        """Answers that grow until they have no room beside one another."""
        places = places_of({"longest"}, self._catalogue)
        return tuple(self._make("stream", self._rng.choice(places)) for _ in range(size))

    def _make(self, manner: Manner, target: int, patience: float = 0.0) -> Request:
        self._num_drawn += 1
        return Request(self._num_drawn, manner, target, self._rng.randrange(NUM_KEYS), patience)
