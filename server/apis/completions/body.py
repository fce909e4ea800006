"""The body of POST /v1/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, WithJsonSchema

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import MAX_LOGPROBS, MAX_N
from orcinus.server.requests.bodies import GenerationBody, check_stream_options, read_body
from orcinus.server.requests.parameters import Endpoint
from orcinus.server.requests.schemas import MAX_PROMPTS, TokenCount, prompts_schema

Prompt = Annotated[Any, WithJsonSchema(prompts_schema(MAX_PROMPTS))]


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    endpoint: ClassVar[Endpoint] = "completions"
    needed: ClassVar[tuple[str, ...]] = ("prompt",)

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


def parse_completion(body: Mapping[str, Any]) -> CompletionBody:
    """Return the body of a completion. Raises `InvalidRequestError`."""
    request = read_body(CompletionBody, body)
    check_stream_options(request.stream_options, is_streamed=request.stream)
    if request.prompt is None:
        raise InvalidRequestError("prompt is required", "prompt")
    _check_best_of(request)
    return request


def _check_best_of(body: CompletionBody) -> None:
    if body.best_of is not None and body.best_of < body.n:
        raise InvalidRequestError(f"best_of must be at least n ({body.n}), got {body.best_of}", "best_of")
    if body.has_candidates and body.stream:
        raise InvalidRequestError(
            f"best_of ({body.best_of}) beyond n ({body.n}) cannot be streamed: which is best is known at the end",
            "best_of",
        )
