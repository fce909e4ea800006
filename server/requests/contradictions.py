"""Parameters of one request that cannot all be met, as far as that is known before it runs.

What comes up while a text is generated is told by `SamplingParams.contradiction`. Knows nothing of tokens.
"""

import json
from collections.abc import Sequence

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Grammar


def check_choices(grammar: Grammar | None, min_tokens: int, bad_words: Sequence[str]) -> None:
    """Raise `InvalidRequestError`, which names both, where none of the choices can be the text."""
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
    if bad_words and all(any(word in choice for word in bad_words) for choice in choices):
        raise InvalidRequestError(f"bad_words leaves nothing of {grammar.name}: each choice has one", "bad_words")
