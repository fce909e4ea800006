"""The bodies of POST /tokenize and /detokenize."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.reading.tools.request import MAX_TOOLS
from orcinus.server.requests.bodies import Body, read_body
from orcinus.server.requests.schemas import MAX_MESSAGES, MAX_TEMPLATE_VARIABLES, Messages

MAX_DETOKENIZE = 2**18


class TokenizeBody(Body):
    """POST /tokenize: of a text, or of a chat as its template renders it."""

    model: str | None = Field(None, description="Name of the served model.")
    prompt: str | None = Field(None, description="Text to tokenize.")
    messages: Messages | None = Field(None, max_length=MAX_MESSAGES, description="Or a chat to render and tokenize.")
    tools: list[dict[str, Any]] = Field([], max_length=MAX_TOOLS, description="As in chat completions.")
    add_special_tokens: bool | None = Field(None, description="Default: true for text, false for a chat.")
    add_generation_prompt: bool | None = Field(None, description="As in chat completions.")
    continue_final_message: bool = Field(False, description="As in chat completions.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, max_length=MAX_TEMPLATE_VARIABLES, description="As in chat completions."
    )
    return_token_strs: bool = Field(False, description="Add the tokens as text.")


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = Field(None, description="Name of the served model.")
    tokens: list[int] = Field(max_length=MAX_DETOKENIZE, fail_fast=True, description="Token ids.")
    skip_special_tokens: bool = Field(False, description="Leave special tokens out of the text.")


def parse_tokenize(body: Mapping[str, Any]) -> TokenizeBody:
    """Return the body of /tokenize. Raises `InvalidRequestError`."""
    request = read_body(TokenizeBody, body)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequestError("give either prompt or messages", "prompt")
    return request


def parse_detokenize(body: Mapping[str, Any]) -> DetokenizeBody:
    """Return the body of /detokenize. Raises `InvalidRequestError`."""
    return read_body(DetokenizeBody, body)
