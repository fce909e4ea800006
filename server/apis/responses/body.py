"""The body of POST /v1/responses."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import MAX_LOGPROBS
from orcinus.server.reading.tools.request import MAX_TOOLS
from orcinus.server.requests.bodies import Body, BudgetBody, SamplingBody, check_stream_options, read_body
from orcinus.server.requests.parameters import Endpoint
from orcinus.server.requests.schemas import MAX_MESSAGES, MAX_TEMPLATE_VARIABLES, MAX_TOKENS

MAX_METADATA = 16

_ITEMS_SCHEMA = {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": MAX_MESSAGES}
ResponseInput = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, _ITEMS_SCHEMA]})]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
IncludedPart = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]


class ResponseStreamOptions(Body):
    """`stream_options` of a response, which always ends with its usage."""

    include_obfuscation: bool = Field(False, description="Accepted; streams are never padded.")


class TextFormat(Body):
    """`text.format`: what `response_format` is elsewhere, flat."""

    type: Literal["text", "json_object", "json_schema"] = Field("text", description="The form of the text.")
    name: str | None = Field(None, max_length=64, description="Of the schema; needed with one.")
    description: str | None = Field(None, description="Of the schema; not shown to the model.")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="The schema; the text matches it.")
    strict: bool | None = Field(
        None, description="false: what cannot be enforced is left out, and x-orcinus-left-out names it."
    )


class TextOptions(Body):
    """`text`."""

    format: TextFormat | None = Field(None, description="`text`, `json_object`, or `json_schema` with its schema.")
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="Accepted; the models served here have no such control."
    )


class ReasoningOptions(Body):
    """`reasoning`."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Handed to the chat template; if that does not use it, it is a budget."
    )
    context: Literal["auto", "current_turn", "all_turns"] | None = Field(
        None, description="Accepted; which of the earlier reasoning the model sees is up to the chat template."
    )
    mode: str | None = Field(
        None, max_length=64, description="Accepted; the models served here have one mode of reasoning."
    )
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Accepted; reasoning is given whole."
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Older name of `summary`."
    )


class ResponseBody(SamplingBody, BudgetBody):
    """POST /v1/responses."""

    endpoint: ClassVar[Endpoint] = "responses"
    needed: ClassVar[tuple[str, ...]] = ("input",)

    input: ResponseInput = Field(None, description="The conversation: a string, or messages and what came of tools.")
    instructions: str | None = Field(None, description="A system message before the conversation.")
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Tokens to generate at most, reasoning included; absent, what is left of the context."
    )
    stream_options: ResponseStreamOptions | None = Field(
        None, description="`include_obfuscation`, which changes nothing; only with `stream`."
    )
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
    text: TextOptions | None = Field(None, description="`format`: `text`, `json_object` or `json_schema`.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Log-probabilities of the text's tokens, with k alternatives."
    )
    include: list[IncludedPart] = Field(
        [], max_length=32, description="`message.output_text.logprobs`; the others name nothing that is made here."
    )
    reasoning: ReasoningOptions | None = Field(None, description="`effort` of the thinking.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="`auto`: keep of the prompt's end what the context allows, as `truncate_prompt_tokens` -1."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        {}, max_length=MAX_METADATA, description="Given back in the response."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, max_length=MAX_TEMPLATE_VARIABLES, description="More variables for the chat template."
    )

    @property
    def has_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in self.include


def parse_response(body: Mapping[str, Any]) -> ResponseBody:
    """Return the body of a response. Raises `InvalidRequestError`."""
    request = read_body(ResponseBody, body)
    check_stream_options(request.stream_options, is_streamed=request.stream)
    if request.input is None:
        raise InvalidRequestError("input is required", "input")
    if request.truncation == "auto" and request.truncate_prompt_tokens is not None:
        raise InvalidRequestError(
            "truncation and truncate_prompt_tokens both say what to keep of the prompt: give one", "truncation"
        )
    if request.text is not None and request.text.format is not None:
        _check_format(request.text.format)
    return request


def _check_format(chosen: TextFormat) -> None:
    if chosen.type != "json_schema":
        return
    if chosen.name is None:
        raise InvalidRequestError("text.format.name is required with a schema", "text.format.name")
    if chosen.json_schema is None:
        raise InvalidRequestError("text.format.schema is required", "text.format.schema")
