"""The request bodies of the API: fields, types and bounds, validated with pydantic and shown in the OpenAPI document.

`parse_*` take a parsed JSON object; null equals absent, numbers are never made from strings, and the first thing
that is wrong becomes an `InvalidRequestError` that names the field, the limit and the value. What needs the
model (vocabulary, context, template) is checked elsewhere.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from annotated_types import MaxLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORDS,
    MAX_GRAMMAR_CHARS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from orcinus.server.errors import shown
from orcinus.server.requests.parameters import Endpoint, select_parameters

MAX_PROMPTS = 256
MAX_CHOICES = 1024  # prompts x n
MAX_INPUTS = 2048  # to be embedded
MAX_MESSAGES = 4096
MAX_TOKENS = 2**31 - 1
MAX_TIMEOUT_S = 24 * 3600
MAX_TEMPLATE_VARIABLES = 64
MAX_DETOKENIZE = 2**18
MAX_TOOLS = 128
MAX_CHOICE_STRINGS = 4096
MAX_BAD_WORD_CHARS = 1024
MAX_METADATA = 16

Model = TypeVar("Model", bound="_Body")

_PYTHON_OBJECT = re.compile("a valid dictionary( or instance of .*)?")


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


def _string_to_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_STOP_STRING_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS}
_STOPS_SCHEMA = {"type": "array", "items": _STOP_STRING_SCHEMA, "maxItems": MAX_STOP_STRINGS}
_STOP_SCHEMA = {"anyOf": [_STOP_STRING_SCHEMA, _STOPS_SCHEMA]}
_TEXT_SCHEMA = {"type": "string", "minLength": 1}
_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def _prompts_schema(limit: int) -> dict[str, Any]:
    return {
        "anyOf": [
            _TEXT_SCHEMA,
            _IDS_SCHEMA,
            {"type": "array", "items": {"anyOf": [_TEXT_SCHEMA, _IDS_SCHEMA]}, "minItems": 1, "maxItems": limit},
        ]
    }


_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}

Stop = Annotated[list[str], BeforeValidator(_string_to_list), WithJsonSchema(_STOP_SCHEMA)]
StopSequences = Annotated[list[str], WithJsonSchema(_STOPS_SCHEMA)]
Word = Annotated[str, WithJsonSchema({**_TEXT_SCHEMA, "maxLength": MAX_BAD_WORD_CHARS})]
TokenId = Annotated[int, Field(ge=0)]
Prompt = Annotated[Any, WithJsonSchema(_prompts_schema(MAX_PROMPTS))]
Input = Annotated[Any, WithJsonSchema(_prompts_schema(MAX_INPUTS))]
TokenCount = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Texts = Annotated[Any, WithJsonSchema(_TEXTS_SCHEMA)]
_ITEMS_SCHEMA = {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": MAX_MESSAGES}
_PARTS_SCHEMA = {
    "type": "array",
    "items": {
        "anyOf": [
            {
                "type": "object",
                "required": ["type", kind],
                "properties": {"type": {"const": kind}, kind: {"type": "string"}},
            }
            for kind in ("text", "refusal")
        ]
    },
}


_CALL_SCHEMA = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": ["string", "object"]}},
        }
    },
}


def _message_schema(roles: Sequence[str], *content: dict[str, Any]) -> dict[str, Any]:
    calls = {"type": ["array", "null"], "items": _CALL_SCHEMA}
    properties = {"role": {"enum": roles}, "content": {"anyOf": [*content]}, "tool_calls": calls}
    return {"type": "object", "required": ["role", "content"], "properties": properties}


_ASSISTANT_SCHEMA = _message_schema(["assistant"], {"type": "string"}, _PARTS_SCHEMA, {"type": "null"})
_OTHERS_SCHEMA = _message_schema(["system", "developer", "user", "tool", "function"], {"type": "string"}, _PARTS_SCHEMA)
_MESSAGES_SCHEMA = {
    "type": "array",
    "items": {"anyOf": [_OTHERS_SCHEMA, {**_ASSISTANT_SCHEMA, "required": ["role"]}]},
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
}
_BIAS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    "maxProperties": MAX_LOGIT_BIAS,
}
LogitBias = Annotated[dict[str, float], WithJsonSchema(_BIAS_SCHEMA)]
_BLOCKS_SCHEMA = {"type": "array", "items": {"type": "object", "required": ["type"]}, "minItems": 1}
_TURN_SCHEMA = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["user", "assistant", "system"]},
        "content": {"anyOf": [{"type": "string"}, _BLOCKS_SCHEMA]},
    },
    "additionalProperties": False,
}
_TURNS_SCHEMA = {"type": "array", "items": _TURN_SCHEMA, "minItems": 1, "maxItems": MAX_MESSAGES}
Turns = Annotated[list[dict[str, Any]], WithJsonSchema(_TURNS_SCHEMA)]
_GRAMMAR_SCHEMA = {**_TEXT_SCHEMA, "maxLength": MAX_GRAMMAR_CHARS}
_STRUCTURED_SCHEMAS: dict[str, Any] = {
    "json": {"type": ["object", "boolean", "string"]},
    "regex": _GRAMMAR_SCHEMA,
    "choice": {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1, "maxItems": MAX_CHOICE_STRINGS},
    "grammar": _GRAMMAR_SCHEMA,
    "json_object": {"const": True},
}
_STRUCTURED_SCHEMA = {
    "anyOf": [
        {"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": {"type": "null"}}
        for name, schema in _STRUCTURED_SCHEMAS.items()
    ]
}
StructuredOutputs = Annotated[dict[str, Any], WithJsonSchema(_STRUCTURED_SCHEMA)]
_FORMAT_SCHEMA = {
    "anyOf": [
        {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": {"schema": {"type": ["object", "boolean"]}},
                },
            },
        },
    ]
}
ResponseFormat = Annotated[dict[str, Any], WithJsonSchema(_FORMAT_SCHEMA)]
Messages = Annotated[list[dict[str, Any]], WithJsonSchema(_MESSAGES_SCHEMA)]
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


class StreamOptions(_Body):
    """`stream_options`."""

    include_usage: bool = Field(False, description="End the stream with a chunk that holds the usage.")
    continuous_usage_stats: bool = Field(False, description="Put the usage so far into every chunk.")
    include_timing: bool = Field(False, description="End the stream with the usage, and in it where the time went.")
    include_obfuscation: bool = Field(False, description="Accepted; streams are never padded.")


class PromptBody(_Body):
    """What all bodies share whose prompts the engine runs."""

    model: str | None = Field(None, description="Name of the served model; absent, the served one.")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, le=MAX_TOKENS, description="Keep the last k tokens of the prompt; -1: what the context allows."
    )
    priority: int = Field(0, ge=-(2**31), le=2**31 - 1, description="Lower runs first, among those of one API key.")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="Share cached prefixes only with the same salt."
    )
    timeout: float | None = Field(
        None, gt=0, le=MAX_TIMEOUT_S, description="Deadline in seconds, queueing included; past it, 408."
    )


class SamplingBody(PromptBody):
    """What all bodies share that ask for text."""

    stream: bool = Field(False, description="Answer with server-sent events, token by token.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy. Default: the model's, else 1.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling.")
    top_k: int = Field(0, ge=-1, le=MAX_TOKENS, description="Keep the k likeliest tokens; 0 or -1 is off.")
    min_p: float = Field(0.0, ge=0, le=1, description="Keep tokens at least this likely, relative to the best.")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="Over generated tokens.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="Over generated tokens.")
    repetition_penalty: float = Field(1.0, gt=0, le=100, description="Over prompt and generated tokens; 1 is off.")
    logit_bias: LogitBias = Field({}, max_length=MAX_LOGIT_BIAS, description="Token id to a bias from -100 to 100.")
    seed: int | None = Field(
        None, ge=-(2**63), le=2**64 - 1, description="Same seed, same request: same random numbers, whatever else runs."
    )
    stop: Stop = Field(
        [], max_length=MAX_STOP_STRINGS, description=f"Up to {MAX_STOP_STRINGS} strings that end the output."
    )
    stop_token_ids: list[TokenId] = Field(
        [], max_length=MAX_STOP_TOKEN_IDS, description=f"Up to {MAX_STOP_TOKEN_IDS} token ids that end it."
    )
    bad_words: list[Word] = Field([], max_length=MAX_BAD_WORDS // 2, description="Strings that are never generated.")
    allowed_token_ids: list[TokenId] = Field(
        [], min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS, description="Generate only these token ids."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="One of `json`, `regex`, `choice`, `grammar` (Lark or GBNF); the output matches it."
    )
    min_tokens: TokenCount = Field(0, description="Do not end before so many tokens.")
    ignore_eos: bool = Field(False, description="Go on past the end-of-sequence token.")
    include_stop_str_in_output: bool = Field(False, description="Keep the stop string in the text.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")


class GenerationBody(SamplingBody):
    """What completions and chat completions share."""

    n: int = Field(1, ge=1, le=MAX_N, description="Choices per prompt.")
    stream_options: StreamOptions | None = Field(
        None, description="`include_usage`, `continuous_usage_stats`, `include_timing`; only with `stream`."
    )
    response_format: ResponseFormat | None = Field(
        None, description="`text`, `json_object` or `json_schema` with its schema; the output matches it."
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Log-probabilities of the prompt's tokens, with k alternatives."
    )
    return_token_ids: bool = Field(False, description="Add `prompt_token_ids` and `token_ids`.")


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Prompt = Field(None, description="A string, a list of strings, token ids, or lists of them.")
    max_tokens: TokenCount = Field(16, description="Tokens to generate at most; 0 runs the prompt only.")
    best_of: int | None = Field(
        None, ge=1, le=MAX_N, description="Generate so many and answer with the `n` likeliest per token; not streamed."
    )
    echo: bool = Field(False, description="Begin the text (and the logprobs) with the prompt.")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Log-probabilities of the tokens, with k alternatives."
    )
    add_special_tokens: bool = Field(True, description="Let the tokenizer add its own (such as BOS).")

    @property
    def has_candidates(self) -> bool:
        """Whether more is generated than answered with."""
        return self.best_of is not None and self.best_of > self.n


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

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


class ResponseStreamOptions(_Body):
    """`stream_options` of a response, which always ends with its usage."""

    include_obfuscation: bool = Field(False, description="Accepted; streams are never padded.")


class TextFormat(_Body):
    """`text.format`: what `response_format` is elsewhere, flat."""

    type: Literal["text", "json_object", "json_schema"] = Field("text", description="The form of the text.")
    name: str | None = Field(None, max_length=64, description="Of the schema; needed with one.")
    description: str | None = Field(None, description="Of the schema; not shown to the model.")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="The schema; the text matches it.")
    strict: bool | None = Field(None, description="Accepted; schemas are always enforced.")


class TextOptions(_Body):
    """`text`."""

    format: TextFormat | None = Field(None, description="`text`, `json_object`, or `json_schema` with its schema.")
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="Accepted; the models served here have no such control."
    )


class ReasoningOptions(_Body):
    """`reasoning`."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Handed to the chat template, which may use it."
    )
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Accepted; reasoning is given whole."
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Older name of `summary`."
    )


class ResponseBody(SamplingBody):
    """POST /v1/responses."""

    input: ResponseInput = Field(None, description="The conversation: a string, or messages and what came of tools.")
    instructions: str | None = Field(None, description="A system message before the conversation.")
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Tokens to generate at most, reasoning included; absent, what is left of the context."
    )
    stream_options: ResponseStreamOptions | None = Field(
        None, description="`include_obfuscation`, which changes nothing; only with `stream`."
    )
    tools: list[dict[str, Any]] = Field([], max_length=MAX_TOOLS, description="Functions that the model may call.")
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
    reasoning: ReasoningOptions | None = Field(None, description="`effort`, for the chat template.")
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


class EmbeddingBody(PromptBody):
    """POST /v1/embeddings."""

    input: Input = Field(None, description="What to embed: a string, a list of strings, token ids, or lists of them.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`float`, or `base64` of little-endian float32."
    )
    dimensions: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Keep the first k numbers of each embedding, made of length 1 again."
    )
    add_special_tokens: bool = Field(True, description="Let the tokenizer add its own (such as BOS).")


class ThinkingOptions(_Body):
    """`thinking` of a message. A budget is an aim, which the models served here know nothing of."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: TokenCount | None = Field(None, description="Accepted, not held to: `max_tokens` is the limit.")
    display: Literal["summarized"] | None = Field(None, description="Accepted; thinking is shown as it is.")


class MessagesToolChoice(_Body):
    """`tool_choice` of a message."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description="The tool to call, with type `tool`.")
    disable_parallel_tool_use: bool = Field(False, description="One call at most.")


class OutputConfig(_Body):
    """`output_config` of a message."""

    effort: str | None = Field(None, max_length=32, description="Handed to the chat template, which may use it.")
    format: dict[str, Any] | None = Field(None, description="`json_schema` with its schema; the text matches it.")


class MessagesBody(SamplingBody):
    """POST /v1/messages, and /v1/messages/count_tokens, where of these only `messages` is needed."""

    messages: Turns = Field([], max_length=MAX_MESSAGES, description="The conversation: roles and text.")
    system: Texts = Field(None, description="What comes before the conversation: a string, or blocks of text.")
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Tokens to generate at most; /v1/messages needs it."
    )
    stop_sequences: StopSequences = Field([], max_length=MAX_STOP_STRINGS, description="Anthropic's name of `stop`.")
    tools: list[dict[str, Any]] = Field([], max_length=MAX_TOOLS, description="Tools that the model may call.")
    tool_choice: MessagesToolChoice | None = Field(
        None, description="`auto`, `any`, `tool` with a name, or `none`; `any` and `tool` are enforced."
    )
    thinking: ThinkingOptions | None = Field(
        None, description="Turns thinking on or off where the chat template can; its budget is not held to."
    )
    output_config: OutputConfig | None = Field(
        None, description="`effort` for the chat template; `format`: a schema that the text matches."
    )
    output_format: dict[str, Any] | None = Field(None, description="Older place of `output_config.format`.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, max_length=MAX_TEMPLATE_VARIABLES, description="More variables for the chat template."
    )


class TokenizeBody(_Body):
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


class DetokenizeBody(_Body):
    """POST /detokenize."""

    model: str | None = Field(None, description="Name of the served model.")
    tokens: list[int] = Field(max_length=MAX_DETOKENIZE, fail_fast=True, description="Token ids.")
    skip_special_tokens: bool = Field(False, description="Leave special tokens out of the text.")


GENERATION_BODIES: Mapping[Endpoint, type[GenerationBody]] = {
    "completions": CompletionBody,
    "chat": ChatBody,
}


def parse_completion(body: Mapping[str, Any]) -> CompletionBody:
    """The body of a completion. Raises `InvalidRequestError`."""
    request = _validate(CompletionBody, select_parameters(body, CompletionBody, "completions"))
    _check_stream_options(request)
    if request.prompt is None:
        raise InvalidRequestError("prompt is required", "prompt")
    _check_best_of(request)
    return request


def parse_chat(body: Mapping[str, Any]) -> ChatBody:
    """The body of a chat completion. Raises `InvalidRequestError`."""
    request = _validate(ChatBody, select_parameters(body, ChatBody, "chat"))
    _check_stream_options(request)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
    _check_one_limit(request)
    return request


def parse_response(body: Mapping[str, Any]) -> ResponseBody:
    """The body of a response. Raises `InvalidRequestError`."""
    request = _validate(ResponseBody, select_parameters(body, ResponseBody, "responses"))
    _check_stream_options(request)
    if request.input is None:
        raise InvalidRequestError("input is required", "input")
    if request.truncation == "auto" and request.truncate_prompt_tokens is not None:
        raise InvalidRequestError(
            "truncation and truncate_prompt_tokens both say what to keep of the prompt: give one", "truncation"
        )
    if request.text is not None and request.text.format is not None:
        _check_format(request.text.format)
    return request


def parse_embedding(body: Mapping[str, Any]) -> EmbeddingBody:
    """The body of a request for embeddings. Raises `InvalidRequestError`."""
    request = _validate(EmbeddingBody, select_parameters(body, EmbeddingBody, "embeddings"))
    if request.input is None:
        raise InvalidRequestError("input is required", "input")
    return request


def parse_messages(body: Mapping[str, Any]) -> MessagesBody:
    """The body of a message. Raises `InvalidRequestError`."""
    request = parse_message_count(body)
    if request.max_tokens is None:
        raise InvalidRequestError("max_tokens is required", "max_tokens")
    return request


def parse_message_count(body: Mapping[str, Any]) -> MessagesBody:
    """The body of a message whose tokens are to be counted. Raises `InvalidRequestError`."""
    request = _validate(MessagesBody, select_parameters(body, MessagesBody, "messages"))
    if not request.messages:
        raise InvalidRequestError("messages must have at least one message, got none", "messages")
    if request.stop and request.stop_sequences:
        raise InvalidRequestError("stop and stop_sequences are two names of one list: give one", "stop_sequences")
    if request.output_format is not None and request.output_config is not None and request.output_config.format:
        raise InvalidRequestError("output_format and output_config.format are one thing: give one", "output_format")
    return request


def parse_tokenize(body: Mapping[str, Any]) -> TokenizeBody:
    """The body of /tokenize. Raises `InvalidRequestError`."""
    request = _validate(TokenizeBody, _without_nulls(body))
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequestError("give either prompt or messages", "prompt")
    return request


def parse_detokenize(body: Mapping[str, Any]) -> DetokenizeBody:
    """The body of /detokenize. Raises `InvalidRequestError`."""
    return _validate(DetokenizeBody, _without_nulls(body))


def _check_format(chosen: TextFormat) -> None:
    if chosen.type != "json_schema":
        return
    if chosen.name is None:
        raise InvalidRequestError("text.format.name is required with a schema", "text.format.name")
    if chosen.json_schema is None:
        raise InvalidRequestError("text.format.schema is required", "text.format.schema")


def _check_stream_options(request: GenerationBody | ResponseBody) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options is only allowed when stream is true", "stream_options")


def _check_one_limit(request: ChatBody) -> None:
    new, old = request.max_completion_tokens, request.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidRequestError(
            f"max_completion_tokens ({new}) and max_tokens ({old}) are two names of one limit: give one",
            "max_tokens",
        )


def _check_best_of(body: CompletionBody) -> None:
    if body.best_of is not None and body.best_of < body.n:
        raise InvalidRequestError(f"best_of must be at least n ({body.n}), got {body.best_of}", "best_of")
    if body.has_candidates and body.stream:
        raise InvalidRequestError(
            f"best_of ({body.best_of}) beyond n ({body.n}) cannot be streamed: which is best is known at the end",
            "best_of",
        )


def _validate(model: type[Model], values: dict[str, Any]) -> Model:
    _check_names(model, values)
    _check_sizes(model, values)
    for name, value in values.items():
        part = _part_model(model, name)
        if part is not None and isinstance(value, dict):
            values[name] = _without_nulls(value)
            _check_names(part, values[name], f"{name}.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error) from None


def _part_model(model: type[_Body], name: str) -> type[_Body] | None:
    """The model of a field that is an object with fields of its own."""
    kinds = get_args(model.model_fields[name].annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, _Body)), None)


def _check_names(model: type[_Body], values: Mapping[str, Any], prefix: str = "") -> None:
    """pydantic would collect an error for each of a million."""
    for name in values:
        if name not in model.model_fields:
            raise InvalidRequestError(f"unknown parameter {prefix + name[:100]!r}", prefix + name[:100])


def _check_sizes(model: type[_Body], values: Mapping[str, Any]) -> None:
    """Of lists and objects, before pydantic looks at their entries."""
    for name, value in values.items():
        limits = [rule.max_length for rule in model.model_fields[name].metadata if isinstance(rule, MaxLen)]
        if limits and isinstance(value, (list, dict)) and len(value) > limits[0]:
            raise InvalidRequestError(f"{name} takes at most {limits[0]} entries, got {len(value)}", name)


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _first_problem(error: ValidationError) -> InvalidRequestError:
    problem = error.errors(include_url=False, include_context=False)[0]
    param = _path(problem["loc"])
    if problem["type"] == "missing":
        return InvalidRequestError(f"{param} is required", param)
    message = problem["msg"].replace("Input should", "should").replace("should", "must", 1)
    message = _PYTHON_OBJECT.sub("an object", message[:1].lower() + message[1:])
    if problem["type"] == "literal_error":
        message = message.replace("'", '"')
    return InvalidRequestError(f"{param}: {message}, got {shown(problem['input'])}", param)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].role`, from `("messages", 0, "role")`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:100]}"
    return path.lstrip(".")
