"""The body of POST /v1/rerank, as Cohere (v1 and v2), Jina and vLLM have it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.requests.bodies import read_body
from orcinus.server.requests.judging_body import Documents, JudgingBody, check_query
from orcinus.server.requests.parameters import Endpoint
from orcinus.server.requests.schemas import TokenCount


class RerankBody(JudgingBody):
    """POST /v1/rerank."""

    endpoint: ClassVar[Endpoint] = "rerank"
    needed: ClassVar[tuple[str, ...]] = ("query", "documents")

    query: str = Field("", min_length=1, description="What the documents are to be relevant to.")
    documents: Documents = Field(None, description="What to rank: strings, or objects with a `text`.")
    top_n: TokenCount = Field(0, description="Give the best k documents; 0: all.")
    return_documents: bool = Field(True, description="Give each document with its score.")


def parse_rerank(body: Mapping[str, Any]) -> RerankBody:
    """Return the body of a request to rerank. Raises `InvalidRequestError`."""
    request = read_body(RerankBody, body)
    for name in RerankBody.needed:
        if name not in request.model_fields_set:
            raise InvalidRequestError(f"{name} is required", name)
    check_query(request.query, "query")
    return request
