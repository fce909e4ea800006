"""What a client reads: whole answers and streams, brought to one form, and told apart where they differ.

Knows the API's answers and no sockets. A stream and a whole answer to the same request have the same form here.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 2e-3  # of log-probabilities, for float32 sums in another order


class UnreadableError(Exception):
    """The server wrote what no client can read."""


@dataclass(slots=True)
class ChoiceAnswer:
    """One choice, as far as it was read. `vector` is that of an embedding."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] | None = None
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


class StreamReader:
    """Takes the lines of a stream in. Raises `UnreadableError`."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.error: dict[str, Any] | None = None
        self.is_done = False
        self.num_events = 0

    def feed(self, line: str) -> None:
        if not line or line.startswith(":"):
            return
        if self.is_done:
            raise UnreadableError(f"a line after [DONE]: {line[:200]}")
        if not line.startswith("data: "):
            raise UnreadableError(f"a line that is no data: {line[:200]}")
        if line == "data: [DONE]":
            self.is_done = True
            return
        if self.error is not None:
            raise UnreadableError(f"an event after an error: {line[:200]}")
        self._take(read_json(line.removeprefix("data: ")))

    def _take(self, event: dict[str, Any]) -> None:
        self.num_events += 1
        if "error" in event:
            self.error = event["error"]
            return
        for choice in event["choices"]:
            add_choice(self.answer, choice, choice.get("delta", choice))
        read_usage(self.answer, event.get("usage"))


def read_whole(found: dict[str, Any]) -> Answer:
    answer = Answer()
    for choice in found.get("choices", ()):
        add_choice(answer, choice, choice.get("message", choice))
    for item in found.get("data", ()):
        answer.choices[item["index"]] = ChoiceAnswer(vector=item["embedding"], finish_reason="stop")
    read_usage(answer, found.get("usage"))
    return answer


def read_json(text: str | bytes) -> dict[str, Any]:
    """An object without NaN. Raises `UnreadableError`."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise UnreadableError(f"not JSON ({error}): {text[:200]!r}") from None
    if not isinstance(found, dict):
        raise UnreadableError(f"not an object: {text[:200]!r}")
    return found


def add_choice(answer: Answer, choice: dict[str, Any], message: dict[str, Any]) -> None:
    """A piece of a choice; a whole one is one piece. `message` holds its text."""
    seen = answer.choices.setdefault(choice["index"], ChoiceAnswer())
    if seen.finish_reason is not None:
        raise UnreadableError(f"choice {choice['index']} goes on after its finish_reason {seen.finish_reason!r}")
    seen.text += message.get("content") or message.get("text") or ""
    seen.token_ids += choice.get("token_ids") or []
    seen.logprobs += read_logprobs(choice.get("logprobs"))
    seen.finish_reason = choice.get("finish_reason")
    if (prompt_logprobs := choice.get("prompt_logprobs")) is not None:
        if seen.prompt_logprobs is not None:
            raise UnreadableError("prompt_logprobs came twice")
        seen.prompt_logprobs = prompt_logprobs


def read_logprobs(found: dict[str, Any] | None) -> list[Any]:
    """An entry for each token, of either API."""
    if found is None:
        return []
    if "content" in found:
        return list(found["content"] or [])
    columns = (found["tokens"], found["token_logprobs"], found["top_logprobs"] or [None] * len(found["tokens"]))
    return [list(entry) for entry in zip(*columns, found["text_offset"], strict=True)]


def read_usage(answer: Answer, usage: dict[str, Any] | None) -> None:
    if usage is None:
        return
    answer.prompt_tokens = usage["prompt_tokens"]
    answer.completion_tokens = usage.get("completion_tokens", 0)


def differences(seen: Answer, twin: Answer, *, is_complete: bool, tolerance: float = TOLERANCE) -> Iterator[str]:
    """What is wrong with an answer; of one that was not read to its end, the twin must hold every piece."""
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
    for name in ("token_ids", "text", "logprobs", "prompt_logprobs"):
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


def _refuse(constant: str) -> None:
    raise UnreadableError(f"{constant} is not JSON")
