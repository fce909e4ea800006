"""The body of POST /v1/score, as vLLM has it: two texts or lists of them, by one of four pairs of names."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.requests.bodies import read_body
from orcinus.server.requests.judging_body import (
    JudgingBody,
    QueryOrQueries,
    TextOrTexts,
    check_query,
    read_text,
    read_texts,
)
from orcinus.server.requests.parameters import Endpoint


class ScoreBody(JudgingBody):
    """POST /v1/score."""

    endpoint: ClassVar[Endpoint] = "score"
    choices: ClassVar[tuple[tuple[str, str], ...]] = (
        ("text_1", "text_2"),
        ("queries", "documents"),
        ("queries", "items"),
        ("data_1", "data_2"),
    )

    text_1: QueryOrQueries = Field(None, description="The query, or one for each text of `text_2`.")
    text_2: TextOrTexts = Field(None, description="The text to score, or texts.")
    queries: QueryOrQueries = Field(None, description="`text_1`, by another name.")
    documents: TextOrTexts = Field(None, description="`text_2`, where the other is `queries`.")
    items: TextOrTexts = Field(None, description="`text_2`, where the other is `queries`.")
    data_1: QueryOrQueries = Field(None, description="`text_1`, by another name.")
    data_2: TextOrTexts = Field(None, description="`text_2`, where the other is `data_1`.")


def parse_score(body: Mapping[str, Any]) -> ScoreBody:
    """Return the body of a request for scores. Raises `InvalidRequestError`."""
    return read_body(ScoreBody, body)


def read_pairs(body: ScoreBody) -> tuple[list[tuple[str, str]], str]:
    """Return the pairs of texts, and the name of their second. Raises `InvalidRequestError`."""
    first, second = _names(body)
    queries, texts = _read_side(body, first), _read_side(body, second)
    for index, query in enumerate(queries):
        check_query(query, f"{first}[{index}]" if isinstance(getattr(body, first), list) else first)
    if len(queries) not in (1, len(texts)):
        raise InvalidRequestError(
            f"{first} must be one text, or as many as {second}: got {len(queries)} and {len(texts)}", first
        )
    queries = queries * len(texts) if len(queries) == 1 else queries
    return [*zip(queries, texts, strict=True)], second


def _names(body: ScoreBody) -> tuple[str, str]:
    """Return which two fields are given."""
    given = {name for pair in ScoreBody.choices for name in pair if getattr(body, name) is not None}
    for pair in ScoreBody.choices:
        if given == {*pair}:
            return pair
    if not given:
        raise InvalidRequestError("text_1 and text_2 are required", "text_1")
    several = ", ".join(f"{first} and {second}" for first, second in ScoreBody.choices)
    raise InvalidRequestError(f"give one of these pairs: {several}; got {', '.join(sorted(given))}", min(given))


def _read_side(body: ScoreBody, name: str) -> list[str]:
    given = getattr(body, name)
    return read_texts(given, name) if isinstance(given, list) else [read_text(given, name)]
