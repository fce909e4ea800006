"""The body of POST /v1/chat/completions, which every API that speaks in messages makes of its own."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import MAX_LOGPROBS
from orcinus.server.reading.tools.request import MAX_TOOLS
from orcinus.server.requests.bodies import GenerationBody, check_stream_options, read_body
from orcinus.server.requests.parameters import Endpoint
from orcinus.server.requests.schemas import MAX_MESSAGES, MAX_TEMPLATE_VARIABLES, Messages, TokenCount


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    endpoint: ClassVar[Endpoint] = "chat"
    needed: ClassVar[tuple[str, ...]] = ("messages",)

    messages: Messages = Field([], max_length=MAX_MESSAGES, description="The conversation: roles and text.")
    tools: list[dict[str, Any]] = Field([], max_length=MAX_TOOLS, description="Functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="`none`, `auto`, `required`, or a function by name; the last two are enforced."
    )
    parallel_tool_calls: bool | None = Field(None, description="False: one call at most. Default: true.")
    max_completion_tokens: TokenCount | None = Field(
        None, description="Tokens to generate at most; absent, what is left of the context."
    )
    max_tokens: TokenCount | None = Field(None, description="Older name of `max_completion_tokens`.")
    logprobs: bool = Field(False, description="Log-probabilities of the tokens.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives per token; needs `logprobs`."
    )
    reasoning_effort: str | None = Field(
        None, max_length=32, description="Handed to the chat template, which may use it."
    )
    add_generation_prompt: bool | None = Field(
        None, description="End the prompt with the opening of an assistant message; on by default."
    )
    continue_final_message: bool = Field(
        False, description="Continue the last message, which stays open, instead of answering it."
    )
    add_special_tokens: bool = Field(False, description="Add the tokenizer's own to what the template wrote.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, max_length=MAX_TEMPLATE_VARIABLES, description="More variables for the chat template."
    )


def parse_chat(body: Mapping[str, Any]) -> ChatBody:
    """Return the body of a chat completion. Raises `InvalidRequestError`."""
    request = read_body(ChatBody, body)
    check_stream_options(request.stream_options, is_streamed=request.stream)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
    _check_one_limit(request)
    return request


def _check_one_limit(request: ChatBody) -> None:
    new, old = request.max_completion_tokens, request.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidRequestError(
            f"max_completion_tokens ({new}) and max_tokens ({old}) are two names of one limit: give one",
            "max_tokens",
        )
