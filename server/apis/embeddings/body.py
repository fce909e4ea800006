"""The body of POST /v1/embeddings."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.requests.bodies import PromptBody, read_body
from orcinus.server.requests.parameters import Endpoint
from orcinus.server.requests.schemas import MAX_INPUTS, MAX_TOKENS, prompts_schema

Input = Annotated[Any, WithJsonSchema(prompts_schema(MAX_INPUTS))]


class EmbeddingBody(PromptBody):
    """POST /v1/embeddings."""

    endpoint: ClassVar[Endpoint] = "embeddings"
    needed: ClassVar[tuple[str, ...]] = ("input",)

    input: Input = Field(None, description="What to embed: a string, a list of strings, token ids, or lists of them.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`float`, or `base64` of little-endian float32."
    )
    dimensions: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Keep the first k numbers of each embedding, made of length 1 again."
    )
    add_special_tokens: bool = Field(True, description="Let the tokenizer add its own (such as BOS).")


def parse_embedding(body: Mapping[str, Any]) -> EmbeddingBody:
    """Return the body of a request for embeddings. Raises `InvalidRequestError`."""
    request = read_body(EmbeddingBody, body)
    if request.input is None:
        raise InvalidRequestError("input is required", "input")
    return request
