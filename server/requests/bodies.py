"""What the bodies of several APIs share: fields, types and bounds, validated with pydantic and shown in the OpenAPI
document.

Each API's own body stands in its package in `server.apis`. What needs the model (vocabulary, context, template) is
checked elsewhere.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from orcinus.server.json_values import without_nulls
from orcinus.server.requests.parameters import Endpoint, select_parameters
from orcinus.server.requests.schemas import (
    MAX_TOKENS,
    LogitBias,
    ResponseFormat,
    Stop,
    StructuredOutputs,
    ThinkingBudget,
    TokenCount,
    TokenId,
    Word,
    bounds_of,
)
from orcinus.server.requests.validation import validate

MAX_TIMEOUT_S = 24 * 3600

MAX_MODELS = 100
MAX_MODEL_CHARS = 1024

ModelName = Annotated[str, Field(max_length=MAX_MODEL_CHARS)]
T = TypeVar("T", bound="Body")


class Body(BaseModel):
    """A body, or a part of one that is an object.

    `endpoint` is whose rows in `server.requests.parameters` decide about parameters that are no fields; None: they are
    refused. `needed` are the fields that cannot be left out although they have defaults, because the API words their
    absence itself. `choices` are sets of fields of which exactly one is given, whole.
    """

    endpoint: ClassVar[Endpoint | None] = None
    needed: ClassVar[tuple[str, ...]] = ()
    choices: ClassVar[tuple[tuple[str, ...], ...]] = ()

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = Field(False, description="End the stream with a chunk that holds the usage.")
    continuous_usage_stats: bool = Field(False, description="Put the usage so far into every chunk.")
    include_timing: bool = Field(False, description="End the stream with the usage, and in it where the time went.")
    include_obfuscation: bool = Field(False, description="Accepted; streams are never padded.")


class PromptBody(Body):
    """Holds what all bodies share whose prompts the engine runs."""

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
    """Holds what all bodies share that ask for text."""

    models: list[ModelName] = Field(
        [],
        max_length=MAX_MODELS,
        description="OpenRouter's list of models to fall back on: one of these and `model` must be served.",
    )
    stream: bool = Field(False, description="Answer with server-sent events, token by token.")
    temperature: Annotated[float, bounds_of("temperature")] = Field(
        1.0, description="0 is greedy. Default: the model's, else 1."
    )
    top_p: Annotated[float, bounds_of("top_p")] = Field(1.0, description="Nucleus sampling; 0 is greedy.")
    top_k: Annotated[int, bounds_of("top_k")] = Field(
        0, le=MAX_TOKENS, description="Keep the k likeliest tokens; 0 or -1 is off."
    )
    min_p: Annotated[float, bounds_of("min_p")] = Field(
        0.0, description="Keep tokens at least this likely, relative to the best."
    )
    presence_penalty: Annotated[float, bounds_of("presence_penalty")] = Field(0.0, description="Over generated tokens.")
    frequency_penalty: Annotated[float, bounds_of("frequency_penalty")] = Field(
        0.0, description="Over generated tokens."
    )
    repetition_penalty: Annotated[float, bounds_of("repetition_penalty")] = Field(
        1.0, description="Over prompt and generated tokens; 1 is off."
    )
    logit_bias: LogitBias = Field({}, max_length=MAX_LOGIT_BIAS, description="Token id to a bias from -100 to 100.")
    seed: Annotated[int, bounds_of("seed")] | None = Field(
        None, description="Same seed, same request: same random numbers, whatever else runs."
    )
    stop: Stop = Field(
        [], max_length=MAX_STOP_STRINGS, description=f"Up to {MAX_STOP_STRINGS} strings that end the output."
    )
    stop_token_ids: list[TokenId] = Field(
        [], max_length=MAX_STOP_TOKEN_IDS, description=f"Up to {MAX_STOP_TOKEN_IDS} token ids that end it."
    )
    bad_words: list[Word] = Field(
        [],
        max_length=MAX_BAD_WORDS // 2,
        description="Strings that are never generated as the tokens that they are encoded to, with and without a space"
        " before. Other tokens may still spell them.",
    )
    allowed_token_ids: list[TokenId] = Field(
        [], min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS, description="Generate only these token ids."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="One of `json`, `regex`, `choice`, `grammar` (Lark or GBNF); the output matches it."
    )
    min_tokens: TokenCount = Field(
        0,
        description="Do not end before so many tokens, unless what the output must match allows nothing else: the"
        " end of a finite grammar comes first.",
    )
    ignore_eos: bool = Field(False, description="Go on past the end-of-sequence token.")
    include_stop_str_in_output: bool = Field(False, description="Keep the stop string in the text.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")


class BudgetBody(Body):
    """Holds what all bodies share that are answered by a model that may think first."""

    thinking_budget: ThinkingBudget | None = Field(
        None,
        description="Tokens of thinking at most: it is ended there, and the answer follows. 0: none; -1: no budget."
        " Default: by the effort, else --default-thinking-budget.",
    )
    thinking_token_budget: ThinkingBudget | None = Field(None, description="vLLM's name of `thinking_budget`.")


class GenerationBody(SamplingBody):
    """Holds what completions and chat completions share."""

    n: Annotated[int, bounds_of("n")] = Field(1, description="Choices per prompt.")
    stream_options: StreamOptions | None = Field(
        None, description="`include_usage`, `continuous_usage_stats`, `include_timing`; only with `stream`."
    )
    response_format: ResponseFormat | None = Field(
        None,
        description="`text`, `json_object` or `json_schema` with its schema; the output matches it, with `strict` or"
        " without. `strict: false`: what cannot be enforced is left out, and x-orcinus-left-out names it.",
    )
    prompt_logprobs: Annotated[int, bounds_of("prompt_logprobs")] | None = Field(
        None, description="Log-probabilities of the prompt's tokens, with k alternatives."
    )
    return_token_ids: bool = Field(False, description="Add `prompt_token_ids` and `token_ids`.")


def read_body(kind: type[T], given: Mapping[str, Any]) -> T:
    """Validate a parsed JSON object, in which null equals absent.

    Raises `InvalidRequestError` naming the first parameter that is refused, not known, or has a wrong value.
    """
    stated = select_parameters(given, kind, kind.endpoint) if kind.endpoint else without_nulls(given)
    return validate(kind, stated)


def check_stream_options(options: Body | None, *, is_streamed: bool) -> None:
    """Raise `InvalidRequestError` if there are options for a stream that was not asked for."""
    if options is not None and not is_streamed:
        raise InvalidRequestError("stream_options is only allowed when stream is true", "stream_options")
