"""How a driver talks: one line of JSON when it is ready, then one line of records for each line of requests.

It owns the standard streams and the slots, and knows nothing of how tokens are made. Whatever a peer's library
prints goes to standard error.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

Request = tuple[list[int], int]


@dataclass(slots=True)
class Answer:
    """One request's times, in seconds on one clock: the tokens came with the chunks."""

    prompt_tokens: int
    sent_s: float
    completion_tokens: int = 0
    chunk_times_s: list[float] = field(default_factory=list)
    error: str | None = None


Sampling = dict[str, float]
"""temperature, and top_p and top_k where they are given, as in a request over HTTP."""
Run = Callable[[list[Request], int, Sampling], list[Answer]]
Facts = dict[str, str | int]


def converse(load: Callable[[], tuple[Run, Facts]]) -> None:
    """Load the model, say what it runs with, and run every load that is read until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run, facts = load()
    print(json.dumps(facts), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        requests = [(prompt, max_tokens) for prompt, max_tokens in asked["requests"]]
        answers = run(requests, asked["max_concurrency"], asked["sampling"])
        print(json.dumps([asdict(answer) for answer in answers]), file=replies, flush=True)
