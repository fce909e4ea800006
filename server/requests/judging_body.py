"""What the bodies of /v1/rerank and /v1/score share: texts to be judged, and how much of them is read."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.errors import shown
from orcinus.server.json_values import read_string
from orcinus.server.requests.bodies import PromptBody
from orcinus.server.requests.schemas import MAX_INPUTS, TokenCount


def _kinds_of(text: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the forms that a text may have."""
    return [text, {"type": "object", "required": ["text"], "properties": {"text": text}}]


def _list_of(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": kinds}, "minItems": 1, "maxItems": MAX_INPUTS}


_DOCUMENT = _kinds_of({"type": "string"})
_QUERY = _kinds_of({"type": "string", "minLength": 1})

Documents = Annotated[Any, WithJsonSchema(_list_of(_DOCUMENT))]
TextOrTexts = Annotated[Any, WithJsonSchema({"anyOf": [*_DOCUMENT, _list_of(_DOCUMENT)]})]
QueryOrQueries = Annotated[Any, WithJsonSchema({"anyOf": [*_QUERY, _list_of(_QUERY)]})]


class JudgingBody(PromptBody):
    """Holds what both bodies have."""

    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=2**31 - 1,
        description="Cut the document so that the prompt has at most k tokens; -1: what the context allows.",
    )
    instruction: str | None = Field(
        None, min_length=1, description="What the model is to judge, where its prompt has a place for that."
    )
    max_tokens_per_doc: TokenCount = Field(0, description="Keep the first k tokens of each document; 0: all.")
    max_tokens_per_query: TokenCount = Field(0, description="Keep the first k tokens of each query; 0: all.")
    use_activation: bool = Field(
        True, description="Give probabilities from 0 to 1; false: log-odds, which have no bounds."
    )


def read_text(given: Any, where: str) -> str:
    """Return a text, which may stand in an object. Raises `InvalidRequestError`."""
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        return read_string(given, "text", where)
    raise InvalidRequestError(f"{where} must be a string or an object with a text, got {shown(given)}", where)


def read_texts(given: Any, where: str) -> list[str]:
    """Return the texts of a list. Raises `InvalidRequestError` for none, too many, or what is no text."""
    if not isinstance(given, list) or not given:
        got = "an empty list" if given == [] else shown(given)
        raise InvalidRequestError(f"{where} must be a list of strings or of objects with a text, got {got}", where)
    if len(given) > MAX_INPUTS:
        raise InvalidRequestError(f"{where} takes at most {MAX_INPUTS} entries, got {len(given)}", where)
    return [read_text(entry, f"{where}[{index}]") for index, entry in enumerate(given)]


def check_query(query: str, where: str) -> None:
    """Raise `InvalidRequestError` for a query that asks for nothing."""
    if not query:
        raise InvalidRequestError(f"{where} is empty: it must have at least one token", where)
