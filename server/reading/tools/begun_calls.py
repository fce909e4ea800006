"""What makes a call valid from its opening on, where the model is free to call or not.

A format says with which texts its reader begins a call, and what the grammar of its calls has in their place. Knows no
format.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from orcinus.engine.sampling_params import Opening, Openings
from orcinus.server.reading.tools.lark import Terminal, quote
from orcinus.server.reading.tools.request import ToolUse

TokenId = Callable[[str], int | None]  # of a marker that is a token of its own


@dataclass(frozen=True, slots=True)
class BegunCalls:
    """Lark rules of which `calls` is what a model writes from an opening on, and the openings."""

    rules: str
    openings: Openings


def terminal_by(token_id: TokenId) -> Terminal:
    """Return how markers are written in a grammar."""

    def terminal(marker: str) -> str:
        number = token_id(marker)
        return quote(marker) if number is None else f"<[{number}]>"

    return terminal


def opening_tag(tag: str, token_id: TokenId) -> Opening:
    """Return a tag as an opening, with which the grammar's calls begin."""
    return Opening((tag,), begin_with(token_id, tag))


def begin_with(token_id: TokenId, *parts: str) -> tuple[str | int, ...]:
    """Return texts and markers as they are in the grammar."""
    ids = map(token_id, parts)
    return tuple(part if number is None else number for part, number in zip(parts, ids, strict=True))


def after(tool_use: ToolUse, *openings: Opening, text_follows: bool = True) -> Openings:
    """Return the openings of a request's calls."""
    return Openings(openings, text_follows=text_follows, is_single=not tool_use.parallel)


def one_call(tool_use: ToolUse) -> ToolUse:
    """Return the same tools, of which one is called: the next call has an opening of its own."""
    return replace(tool_use, parallel=False)
