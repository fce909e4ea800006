"""The body of POST /v1/messages and /v1/messages/count_tokens, Anthropic's Messages API."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import MAX_STOP_STRINGS
from orcinus.server.reading.tools.request import MAX_TOOLS
from orcinus.server.requests.bodies import Body, BudgetBody, SamplingBody, read_body
from orcinus.server.requests.parameters import Endpoint
from orcinus.server.requests.schemas import (
    MAX_MESSAGES,
    MAX_TEMPLATE_VARIABLES,
    MAX_TOKENS,
    StopSequences,
    TokenCount,
)

TURN_ROLES = ["user", "assistant", "system"]

_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
Texts = Annotated[Any, WithJsonSchema(_TEXTS_SCHEMA)]
_BLOCKS_SCHEMA = {"type": "array", "items": {"type": "object", "required": ["type"]}, "minItems": 1}
_TURN_SCHEMA = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": TURN_ROLES},
        "content": {"anyOf": [{"type": "string"}, _BLOCKS_SCHEMA]},
    },
    "additionalProperties": False,
}
_TURNS_SCHEMA = {"type": "array", "items": _TURN_SCHEMA, "minItems": 1, "maxItems": MAX_MESSAGES}
Turns = Annotated[list[dict[str, Any]], WithJsonSchema(_TURNS_SCHEMA)]


class ThinkingOptions(Body):
    """`thinking` of a message."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: TokenCount | None = Field(
        None, description="As `thinking_budget`, unless `type` is `disabled`; less than `max_tokens`."
    )
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="`omitted`: blocks of thinking come without their text. `summarized`: it comes as it is."
    )


class MessagesToolChoice(Body):
    """`tool_choice` of a message."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description="The tool to call, with type `tool`.")
    disable_parallel_tool_use: bool = Field(False, description="One call at most.")


class OutputConfig(Body):
    """`output_config` of a message."""

    effort: str | None = Field(
        None, max_length=32, description="Handed to the chat template; if that does not use it, it is a budget."
    )
    format: dict[str, Any] | None = Field(None, description="`json_schema` with its schema; the text matches it.")
    task_budget: dict[str, Any] | None = Field(None, description="Accepted, not held to.")


class MessagesBody(SamplingBody, BudgetBody):
    """POST /v1/messages, and /v1/messages/count_tokens, where of these only `messages` is needed."""

    endpoint: ClassVar[Endpoint] = "messages"
    needed: ClassVar[tuple[str, ...]] = ("messages",)

    messages: Turns = Field([], max_length=MAX_MESSAGES, description="The conversation: roles and text.")
    system: Texts = Field(None, description="What comes before the conversation: a string, or blocks of text.")
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description="Tokens to generate at most; /v1/messages needs it. 0: none, the prompt is computed and cached.",
    )
    stop_sequences: StopSequences = Field([], max_length=MAX_STOP_STRINGS, description="Anthropic's name of `stop`.")
    tools: list[dict[str, Any]] = Field(
        [],
        max_length=MAX_TOOLS,
        description="Tools that the model may call. `strict: true`: whatever calls it makes match the schema.",
    )
    tool_choice: MessagesToolChoice | None = Field(
        None, description="`auto`, `any`, `tool` with a name, or `none`; `any` and `tool` are enforced."
    )
    thinking: ThinkingOptions | None = Field(
        None, description="Turns thinking on or off where the chat template can, and has a budget for it."
    )
    output_config: OutputConfig | None = Field(
        None, description="`effort` of the thinking; `format`: a schema that the text matches."
    )
    output_format: dict[str, Any] | None = Field(None, description="Older place of `output_config.format`.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, max_length=MAX_TEMPLATE_VARIABLES, description="More variables for the chat template."
    )

    @property
    def budget_tokens(self) -> int | None:
        return None if self.thinking is None or self.thinking.type == "disabled" else self.thinking.budget_tokens


def parse_messages(body: Mapping[str, Any]) -> MessagesBody:
    """Return the body of a message. Raises `InvalidRequestError`."""
    request = parse_message_count(body)
    if request.max_tokens is None:
        raise InvalidRequestError("max_tokens is required", "max_tokens")
    _check_budget(request.budget_tokens, request.max_tokens)
    return request


def _check_budget(budget_tokens: int | None, max_tokens: int) -> None:
    """Raise `InvalidRequestError` for a budget that Anthropic's API takes no answer from."""
    if budget_tokens is not None and budget_tokens >= max_tokens:
        raise InvalidRequestError(
            f"thinking.budget_tokens ({budget_tokens}) must be less than max_tokens ({max_tokens})",
            "thinking.budget_tokens",
        )


def parse_message_count(body: Mapping[str, Any]) -> MessagesBody:
    """Return the body of a message whose tokens are to be counted. Raises `InvalidRequestError`."""
    request = read_body(MessagesBody, body)
    if not request.messages:
        raise InvalidRequestError("messages must have at least one message, got none", "messages")
    if request.stop and request.stop_sequences:
        raise InvalidRequestError("stop and stop_sequences are two names of one list: give one", "stop_sequences")
    if request.output_format is not None and request.output_config is not None and request.output_config.format:
        raise InvalidRequestError("output_format and output_config.format are one thing: give one", "output_format")
    return request
