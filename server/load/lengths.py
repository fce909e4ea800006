"""How long prompts and outputs are: a fixed number of tokens, or a distribution that is drawn from."""

import argparse
import random
import re
from dataclasses import dataclass

_UNIFORM = re.compile(r"uniform:(\d+)\.\.(\d+)")
_EXPONENTIAL = re.compile(r"exponential:(\d+(?:\.\d+)?),(\d+)\.\.(\d+)")
_FORMS = "128, uniform:32..128 or exponential:64,8..256 (mean, shortest..longest)"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of tokens from `shortest` to `longest`: uniform, or exponential where there is a `mean`."""

    text: str
    shortest: int
    longest: int
    mean: float | None = None

    def draw(self, rng: random.Random) -> int:
        if self.mean is None:
            return rng.randint(self.shortest, self.longest)
        return min(max(round(rng.expovariate(1 / self.mean)), self.shortest), self.longest)


def parse_lengths(text: str) -> Lengths:
    """The lengths that a flag names. Raises `ArgumentTypeError`."""
    lengths = _read(text)
    if lengths is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no length; give {_FORMS}")
    if not 1 <= lengths.shortest <= lengths.longest or lengths.mean == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: lengths and means start at 1, and no shortest above its longest")
    return lengths


def _read(text: str) -> Lengths | None:
    if text.isascii() and text.isdecimal():
        return Lengths(text, int(text), int(text))
    if (match := _UNIFORM.fullmatch(text)) is not None:
        return Lengths(text, int(match[1]), int(match[2]))
    if (match := _EXPONENTIAL.fullmatch(text)) is not None:
        return Lengths(text, int(match[2]), int(match[3]), float(match[1]))
    return None
