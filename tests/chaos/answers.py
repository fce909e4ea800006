"""What a client has read, in one form for all APIs, and how two answers are told apart.

Knows nothing of how an answer was written or sent; `tests.chaos.reading` makes them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 2e-3  # of log-probabilities, for float32 sums in another order


@dataclass(slots=True)
class Call:
    """Of a tool. Its id is made up by the server, and no part of what is right."""

    name: str
    arguments: str = ""


@dataclass(slots=True)
class ChoiceAnswer:
    """One choice, as far as it was read. `finish_reason` is in the words of its API, `vector` that of an embedding."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] | None = None
    calls: list[Call] = field(default_factory=list)
    finish_reason: str | None = None
    vector: list[float] | None = None


@dataclass(slots=True)
class Answer:
    """The choices by their index, and the usage once it came."""

    choices: dict[int, ChoiceAnswer] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices.values())


def differences(seen: Answer, twin: Answer, *, is_complete: bool, tolerance: float = TOLERANCE) -> Iterator[str]:
    """Return what is wrong with an answer; of one that was not read to its end, the twin must hold every piece."""
    if is_complete and seen.choices.keys() != twin.choices.keys():
        yield f"choices {sorted(seen.choices)}, not {sorted(twin.choices)}"
    if is_complete and (seen.prompt_tokens, seen.completion_tokens) != (twin.prompt_tokens, twin.completion_tokens):
        yield (
            f"usage {seen.prompt_tokens}+{seen.completion_tokens}, not {twin.prompt_tokens}+{twin.completion_tokens}"
        )
    for index in seen.choices.keys() & twin.choices.keys():
        compare = _complete_differences if is_complete else _partial_differences
        for difference in compare(seen.choices[index], twin.choices[index], tolerance):
            yield f"choice {index}: {difference}"


def _complete_differences(seen: ChoiceAnswer, twin: ChoiceAnswer, tolerance: float) -> Iterator[str]:
    if len(seen.token_ids) != len(twin.token_ids):
        yield f"{len(seen.token_ids)} tokens, not {len(twin.token_ids)}"
    if seen.finish_reason != twin.finish_reason:
        yield f"finish_reason {seen.finish_reason!r}, not {twin.finish_reason!r}"
    for name in ("token_ids", "text", "calls", "logprobs", "prompt_logprobs"):
        found, wanted = getattr(seen, name), getattr(twin, name)
        if not is_like(found, wanted, tolerance):
            yield _first_difference(name, found, wanted, tolerance)
    if not is_like(seen.vector, twin.vector, TOLERANCE):  # no mode promises more of embeddings
        yield _first_difference("vector", seen.vector, twin.vector, TOLERANCE)


def _partial_differences(seen: ChoiceAnswer, twin: ChoiceAnswer, tolerance: float) -> Iterator[str]:
    if seen.finish_reason not in (None, twin.finish_reason):
        yield f"finish_reason {seen.finish_reason!r}, not {twin.finish_reason!r}"
    for name in ("token_ids", "text", "logprobs"):
        found, wanted = getattr(seen, name), getattr(twin, name)
        if not is_like(found, wanted[: len(found)], tolerance):
            yield _first_difference(name, found, wanted, tolerance)


def is_like(seen: Any, wanted: Any, tolerance: float) -> bool:
    """Equal, but for numbers that are not whole, which may be a little apart."""
    if isinstance(seen, float) and isinstance(wanted, float | int):
        return math.isclose(seen, wanted, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(seen, list) and isinstance(wanted, list):
        pairs = zip(seen, wanted, strict=False)
        return len(seen) == len(wanted) and all(is_like(left, right, tolerance) for left, right in pairs)
    if isinstance(seen, dict) and isinstance(wanted, dict):
        return seen.keys() == wanted.keys() and all(is_like(seen[key], wanted[key], tolerance) for key in seen)
    return bool(seen == wanted)


def _first_difference(name: str, seen: Any, wanted: Any, tolerance: float) -> str:
    if not (isinstance(seen, list | str) and isinstance(wanted, list | str)):
        return f"{name} is {str(seen)[:80]}, not {str(wanted)[:80]}"
    pairs = enumerate(zip(seen, wanted, strict=False))
    unlike = (at for at, (left, right) in pairs if not is_like(left, right, tolerance))
    at = next(unlike, min(len(seen), len(wanted)))
    return f"{name} from {at} on: {str(seen[at : at + 8])[:160]}, not {str(wanted[at : at + 8])[:160]}"
