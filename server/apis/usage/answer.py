"""GET /v1/usage: sums of what named keys have used, by day, key and model. Knows nothing of how they are kept."""

from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.apis.answer_schemas import INTEGER, STRING, AnswerSchema, Schema, constant, list_of, object_with
from orcinus.server.usage.book import UsageBook
from orcinus.server.usage.query import parse_by, parse_since, rows_of
from orcinus.server.usage.store import GROUPS, Usage

T = TypeVar("T")

MAX_ROWS = 10_000
_ROW: Schema = {
    "type": "object",
    "properties": {**dict.fromkeys(GROUPS, STRING), **dict.fromkeys(Usage._fields, INTEGER)},
    "required": [*Usage._fields],
    "additionalProperties": False,
}
USAGE = AnswerSchema("Usage", object_with(object=constant("list"), by=list_of(STRING), data=list_of(_ROW)))
PARAMETERS: tuple[Schema, ...] = (
    {
        "name": "by",
        "in": "query",
        "description": "What is summed by: one or more of day, key and model, with commas. Default: key",
        "schema": {"type": "string", "pattern": r"^(day|key|model)(,(day|key|model))*$"},
    },
    {
        "name": "since",
        "in": "query",
        "description": "The first day (of UTC) that counts. Default: the first there is",
        "schema": {"type": "string", "format": "date"},
    },
)


async def usage(request: Request) -> dict[str, Any]:
    """Return a row for each group. Raises `InvalidRequestError`, and `UsageUnavailableError`."""
    book: UsageBook = request.app.state.usage
    query = request.query_params
    known = [str(parameter["name"]) for parameter in PARAMETERS]
    if unknown := [name for name in query if name not in known]:
        raise InvalidRequestError(
            f"unknown parameter {unknown[0][:40]!r}; known are {', '.join(known)}", unknown[0][:40]
        )
    by = _checked("by", lambda: parse_by(query.getlist("by")))
    since = _checked("since", lambda: parse_since(query["since"])) if "since" in query else ""
    groups = await book.read(by, since, MAX_ROWS + 1)
    if len(groups) > MAX_ROWS:
        raise InvalidRequestError(f"an answer has at most {MAX_ROWS} rows: ask for a later day, or by less", "since")
    return {"object": "list", "by": [*by], "data": [*rows_of(groups, by)]}


def _checked(param: str, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ValueError as error:
        raise InvalidRequestError(str(error), param) from None
