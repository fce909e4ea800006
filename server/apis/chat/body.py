"""The body of POST /v1/chat/completions, which every API that speaks in messages makes of its own."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import MAX_LOGPROBS
from orcinus.server.errors import shown
from orcinus.server.reading.tools.request import MAX_TOOLS
from orcinus.server.requests.bodies import (
    Body,
    BudgetBody,
    GenerationBody,
    StreamOptions,
    check_stream_options,
    read_body,
)
from orcinus.server.requests.parameters import Endpoint
from orcinus.server.requests.schemas import MAX_MESSAGES, MAX_TEMPLATE_VARIABLES, Messages, TokenCount


class ThinkingChoice(Body):
    """`thinking` of a chat."""

    type: Literal["enabled", "adaptive", "auto", "disabled"]
    budget_tokens: TokenCount | None = Field(None, description="As `thinking_budget`, unless `type` is `disabled`.")
    clear_thinking: bool | None = Field(None, description="Handed to the chat template, which may use it.")


class ReasoningChoice(Body):
    """`reasoning` of a chat."""

    effort: str | None = Field(None, max_length=32, description="As `reasoning_effort`.")
    enabled: bool | None = Field(None, description="As `enable_thinking`.")
    exclude: bool = Field(False, description="Leave the reasoning out of the answer.")
    max_tokens: TokenCount | None = Field(None, description="As `thinking_budget`.")
    summary: str | None = Field(None, max_length=32, description="Accepted; reasoning is given whole.")


class UsageChoice(Body):
    """`usage` of a chat."""

    include: bool = Field(False, description="As `stream_options.include_usage`; a whole answer always has it.")


class ChatBody(GenerationBody, BudgetBody):
    """POST /v1/chat/completions."""

    endpoint: ClassVar[Endpoint] = "chat"
    needed: ClassVar[tuple[str, ...]] = ("messages",)

    messages: Messages = Field([], max_length=MAX_MESSAGES, description="The conversation: roles and text.")
    tools: list[dict[str, Any]] = Field(
        [],
        max_length=MAX_TOOLS,
        description="Functions that the model may call. `strict: true`: whatever calls it makes match the schema; in"
        " responses, where a tool says nothing of it, as far as that can be enforced.",
    )
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
        None, max_length=32, description="Handed to the chat template; if that does not use it, it is a budget."
    )
    reasoning: ReasoningChoice | None = Field(
        None,
        description="OpenRouter's form: `effort`; `enabled`; `max_tokens`; `exclude` leaves the reasoning out of the"
        " answer.",
    )
    usage: UsageChoice | None = Field(
        None, description="OpenRouter's form of `stream_options.include_usage`: `include`."
    )
    include_reasoning: bool = Field(True, description="False: leave the reasoning out of the answer.")
    enable_thinking: bool | None = Field(
        None, description="Turns thinking on or off where the chat template can, as in `chat_template_kwargs`."
    )
    thinking: ThinkingChoice | None = Field(
        None, description="DeepSeek's and GLM's form of `enable_thinking`: `type` is `enabled` or `disabled`."
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
    return _with_usage(request)


def _with_usage(request: ChatBody) -> ChatBody:
    """Return the request with its `usage` as an option of its stream."""
    if not request.stream or request.usage is None or not request.usage.include:
        return request
    told = {} if request.stream_options is None else request.stream_options.model_dump()
    options = StreamOptions.model_validate({**told, "include_usage": True})
    return request.model_copy(update={"stream_options": options})


def stated_effort(body: ChatBody) -> str | None:
    """Return how hard the model is to think. Raises `InvalidRequestError` where two parameters differ."""
    effort: str | None = one_of(
        {"reasoning_effort": body.reasoning_effort, "reasoning.effort": body.reasoning and body.reasoning.effort}
    )
    return effort


def template_variables(body: ChatBody, thinking_budget: int | None = None) -> dict[str, Any]:
    """Return the variables of the chat template: whether to think, by the names that templates have for it, and how
    hard, and what `chat_template_kwargs` says.

    Raises `InvalidRequestError` where two parameters say different things.
    """
    variables: dict[str, Any] = {}
    if (effort := stated_effort(body)) is not None:
        variables["reasoning_effort"] = effort
    switches = {
        "enable_thinking": body.enable_thinking,
        "thinking": body.thinking and body.thinking.type != "disabled",
        "reasoning.enabled": body.reasoning and body.reasoning.enabled,
    }
    thinks = one_of(switches)
    if thinks is None and (effort == "none" or thinking_budget == 0):
        thinks = False
    if thinks is not None:
        variables |= {"enable_thinking": thinks, "thinking": thinks}
    if body.thinking is not None and body.thinking.clear_thinking is not None:
        variables["clear_thinking"] = body.thinking.clear_thinking
    return {**variables, **body.chat_template_kwargs}


def one_of(given: Mapping[str, Any]) -> Any:
    """Return what all parameters say that say anything. Raises `InvalidRequestError` if two differ."""
    stated = {name: value for name, value in given.items() if value is not None}
    for name, value in stated.items():
        first = next(iter(stated))
        if value != stated[first]:
            raise InvalidRequestError(
                f"{first} ({shown(stated[first])}) and {name} ({shown(value)}) say different things: give one", name
            )
    return next(iter(stated.values()), None)


def _check_one_limit(request: ChatBody) -> None:
    new, old = request.max_completion_tokens, request.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidRequestError(
            f"max_completion_tokens ({new}) and max_tokens ({old}) are two names of one limit: give one",
            "max_tokens",
        )
