"""Parameters of one request that cannot all be met, as far as that is known before it runs.

What comes up while a text is generated is told by `SamplingParams.contradiction`. Knows nothing of tokens.
"""

import json

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Grammar


def check_choices(grammar: Grammar | None, min_tokens: int) -> None:
    """Raise `InvalidRequestError`, which names both, where none of the choices has enough tokens."""
    if grammar is None or grammar.kind != "choice":
        return
    choices: list[str] = json.loads(grammar.source)
    longest = max(len(choice.encode()) for choice in choices)
    if longest + 1 < min_tokens:  # a token has a byte at least, and the end is one more
        raise InvalidRequestError(
            f"min_tokens is {min_tokens}, and the longest of {grammar.name} has {longest} bytes: no choice has as many"
            " tokens",
            "min_tokens",
        )
