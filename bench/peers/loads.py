"""The loads that every arm gets: how many requests, how long, how many at a time. Pure; it talks to nobody."""

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orcinus.server.load.arrivals import arrival_times
from orcinus.server.load.lengths import parse_lengths
from orcinus.server.load.options import describe_sampling, positive_number
from orcinus.server.load.prompts import LoadItem, PromptShape, Writer, random_items
from orcinus.server.load.target import GREEDY

_OPEN_SLOTS = 32  # that each arm has for requests that arrive one by one
_SAMPLING_FIELDS = {"temperature": float, "top_p": float, "top_k": int}
_FIRST_WORD = 259  # what comes before are special tokens and bytes, which may have no text of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """All requests are there at once, and `max_concurrency` of them are under way.

    Or they are sent at their times in `arrivals`, in seconds after the first, whatever has been answered by then.
    `sampling` are the fields of a request that say how tokens are chosen.
    """

    name: str
    num_requests: int
    max_concurrency: int
    shape: PromptShape
    arrivals: tuple[float, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=lambda: GREEDY)

    @property
    def longest(self) -> int:
        """Tokens of prompt and output together."""
        return self.shape.prompt_tokens.longest + self.shape.output_tokens.longest

    def items(self, vocab_size: int, content: str) -> list[LoadItem]:
        """Prompts of token ids. Another `content` says something else, in as many tokens."""
        return random_items(self.shape, random_writer(vocab_size), self.num_requests, self.name, content)


def random_writer(vocab_size: int) -> Writer:
    """Writes ids that all have text of their own."""
    return Writer(range(_FIRST_WORD, vocab_size))


def fixed_load(streams: int, prompt_tokens: int, output_tokens: int) -> Load:
    """As many requests as streams, all of one length."""
    shape = _shape(str(prompt_tokens), str(output_tokens))
    name = f"{streams} stream{'s' if streams > 1 else ''}"
    return Load(name=name, num_requests=streams, max_concurrency=streams, shape=shape)


def skewed_load(num_requests: int, slots: int) -> Load:
    """Short answers and some long ones, as chat has them."""
    shape = _shape("uniform:32..128", "exponential:64,8..256")
    return Load(name="skewed", num_requests=num_requests, max_concurrency=slots, shape=shape)


def poisson_load(rate: float, num_requests: int, seed: int) -> Load:
    """Requests one by one at random times, `rate` of them a second: prompts are longer than answers, as in chats."""
    rng = random.Random(f"arrivals {seed}")
    return Load(
        name=f"{rate:g} requests/s{f', seed {seed}' if seed else ''}",
        num_requests=num_requests,
        max_concurrency=_OPEN_SLOTS,
        shape=_shape("uniform:64..768", "uniform:32..160"),
        arrivals=tuple(arrival_times(num_requests, rate, burstiness=1.0, rng=rng)),
    )


def sampled(loads: Sequence[Load], samplings: Sequence[Mapping[str, float]]) -> list[Load]:
    """Return each load with each sampling, and its name with it where there are several."""
    if len(samplings) == 1:
        return [replace(load, sampling=samplings[0]) for load in loads]
    return [
        replace(load, name=f"{load.name}, {describe_sampling(sampling)}", sampling=sampling)
        for load in loads
        for sampling in samplings
    ]


def warm_up_of(load: Load, output_tokens: int) -> Load:
    """Return what is not counted: with it a server allocates and compiles what its first requests of this load need."""
    shape = replace(load.shape, output_tokens=parse_lengths(str(output_tokens)))
    num_requests = min(load.max_concurrency, load.num_requests)
    return replace(load, name=f"warm-up of {load.name}", num_requests=num_requests, shape=shape, arrivals=())


def wake_up_load() -> Load:
    """Not counted either: it makes an arm that was held still touch its weights again."""
    return Load(name="wake-up", num_requests=1, max_concurrency=1, shape=_shape("32", "8"))


def parse_streams(text: str) -> list[int]:
    """`1,4,16` as numbers. Raises `ArgumentTypeError`."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers from 1, with commas")
    return [int(part) for part in parts]


def parse_rates(text: str) -> list[float]:
    """`0.4,1` as numbers above 0. Raises `ArgumentTypeError`."""
    return [positive_number(part) for part in text.split(",")]


def parse_sampling(text: str) -> dict[str, float]:
    """`temperature=1,top_p=0.95` as fields of a request. Raises `ArgumentTypeError`."""
    fields = dict(GREEDY)
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in _SAMPLING_FIELDS:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(f'{n}=...' for n in _SAMPLING_FIELDS)}")
        fields[name] = _SAMPLING_FIELDS[name](value)
    return fields


def _shape(prompt_tokens: str, output_tokens: str) -> PromptShape:
    return PromptShape(prompt_tokens=parse_lengths(prompt_tokens), output_tokens=parse_lengths(output_tokens))
