"""The form that an output is asked to have, tried out before the engine gets it, and loosened where that is wanted.

What is strict is enforced or refused, by the client's own name of the part that cannot be. What is not (`strict:
false`) is never refused for what its schema says: the keywords that cannot be enforced are left out, and the answer
says which. Shared by every API that generates.
"""

import json
from collections.abc import Iterable

import msgspec

from orcinus.engine.errors import InvalidRequestError, UnenforceableKeyword, UnenforceableSchemaError
from orcinus.engine.sampling_params import Grammar
from orcinus.server.context import ServingContext
from orcinus.server.json_values import path_of
from orcinus.server.requests.left_out import leave_out


async def settle_form(ctx: ServingContext, grammar: Grammar, place: str, *, is_loose: bool) -> Grammar:
    """Return the grammar in force: this one, or what can be enforced of it if it `is_loose`.

    `place` is where the client's own words for it stand in the body. Raises `InvalidRequestError`.
    """
    try:
        await ctx.engine.check_grammar(grammar, grammar.param)
    except UnenforceableSchemaError as error:
        if not is_loose:
            raise refusal_of(error.keywords, place) from error
        rest = msgspec.structs.replace(grammar, source=error.rest)
        if await can_be_enforced(ctx, rest):
            for name in keyword_places(error.keywords, place):
                leave_out(name)
            return rest
    except InvalidRequestError as error:
        if not is_loose:
            raise _in_own_words(error, grammar, place) from error
    else:
        return grammar
    leave_out(place)
    return msgspec.structs.replace(grammar, kind="json_object", source="")


async def can_be_enforced(ctx: ServingContext, grammar: Grammar) -> bool:
    try:
        await ctx.engine.check_grammar(grammar, grammar.param)
    except InvalidRequestError:
        return False
    return True


def refusal_of(keywords: Iterable[UnenforceableKeyword], place: str) -> InvalidRequestError:
    """Return the error that names the first of the keywords. `place` is that of their schema in the body."""
    first = next(iter(keywords))
    where = path_of(place, first.place)
    why = f": {first.reason}" if first.reason else ""
    return InvalidRequestError(f"{where}: keyword {json.dumps(first.keyword)} cannot be enforced{why}", where)


def keyword_places(keywords: Iterable[UnenforceableKeyword], place: str) -> list[str]:
    """Return where the keywords of a schema stand in the body."""
    return [path_of(place, (*found.place, found.keyword)) for found in keywords]


def _in_own_words(error: InvalidRequestError, grammar: Grammar, place: str) -> InvalidRequestError:
    """Return the error, without the words that are about what a schema was made into."""
    if grammar.kind == "json_schema" and "the grammar cannot be followed" in str(error):
        return InvalidRequestError(f"{place} cannot be enforced: it is too complex", grammar.param)
    return error
