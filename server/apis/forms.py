"""The form that an output is asked to have, tried out before the engine gets it, and loosened where that is wanted.

What is strict is enforced or refused. What is not (`strict: false`) is never refused for what its schema says: as much
of it is enforced as can be. Shared by every API that generates.
"""

import json
from collections.abc import Callable, Iterator

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Grammar
from orcinus.server.context import ServingContext
from orcinus.server.reading.tools.lark import inline_json


async def settle_form(
    ctx: ServingContext, grammar: Grammar, looser: Callable[[], Iterator[Grammar]] | None = None
) -> Grammar:
    """Return the grammar in force: this one, or the first of the `looser` ones that can be enforced.

    Raises `InvalidRequestError`, of the first, where there is none.
    """
    try:
        await ctx.engine.check_grammar(grammar, grammar.param)
    except InvalidRequestError:
        for other in looser() if looser is not None else ():
            other = msgspec.structs.replace(other, thinking=grammar.thinking, param=grammar.param)  # noqa: PLW2901
            if await _can_be_enforced(ctx, other):
                return other
        raise
    return grammar


def looser_schemas(grammar: Grammar) -> Iterator[Grammar]:
    """Yield what may stand in for the schema of a grammar: what can be enforced of it, and any object."""
    schema = json.loads(grammar.source) if grammar.kind == "json_schema" else {}
    if isinstance(schema, dict):
        yield Grammar("grammar", f"start: {inline_json(schema, strict=False)}\n")
    yield Grammar("json_object")


async def _can_be_enforced(ctx: ServingContext, grammar: Grammar) -> bool:
    try:
        await ctx.engine.check_grammar(grammar, grammar.param)
    except InvalidRequestError:
        return False
    return True
