"""Answers against the types of the official SDK, more strictly than the SDK itself looks at them.

No value of another type is taken for the right one, what the API always sends has to be there even where it is null,
and no field goes beyond the type's but the extensions declared here.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from openai import BaseModel
from openai.types import Completion, CompletionChoice, CompletionUsage, CreateEmbeddingResponse, Model
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.completion_usage import PromptTokensDetails
from openai.types.responses import Response, ResponseError
from openai.types.responses.response_usage import InputTokensDetails

# Optional in the SDK's types, which so allow for other endpoints and older answers; here they never miss.
ALWAYS_THERE: Mapping[type[BaseModel], frozenset[str]] = {
    ChatCompletion: frozenset({"usage", "system_fingerprint"}),
    ChatCompletionChunk: frozenset({"system_fingerprint"}),
    ChatCompletionMessage: frozenset({"content", "refusal"}),
    ChatCompletionTokenLogprob: frozenset({"bytes"}),
    Completion: frozenset({"system_fingerprint"}),
    CompletionChoice: frozenset({"logprobs"}),
    CompletionUsage: frozenset({"prompt_tokens_details"}),
    Response: frozenset({"error", "incomplete_details", "instructions", "metadata", "temperature", "top_p", "status"}),
    chat_completion.Choice: frozenset({"logprobs"}),
    chat_completion.ChoiceLogprobs: frozenset({"content", "refusal"}),
    chat_completion_chunk.Choice: frozenset({"finish_reason", "logprobs"}),
}

# What this server documents beyond the specification.
EXTENSIONS: Mapping[type[BaseModel], frozenset[str]] = {
    ChatCompletion: frozenset({"prompt_logprobs", "prompt_token_ids"}),
    ChatCompletionChunk: frozenset({"prompt_logprobs", "prompt_token_ids"}),
    ChatCompletionMessage: frozenset({"reasoning_content"}),
    CompletionChoice: frozenset({"prompt_logprobs", "prompt_token_ids", "stop_reason", "token_ids"}),
    CompletionUsage: frozenset({"timing"}),
    InputTokensDetails: frozenset({"cache_miss"}),
    Model: frozenset({"max_model_len"}),
    PromptTokensDetails: frozenset({"cache_miss"}),
    Response: frozenset({"store"}),  # which OpenAI's own answers have too
    ResponseError: frozenset({"param", "type"}),  # as errors have elsewhere
    chat_completion.Choice: frozenset({"stop_reason", "token_ids"}),
    chat_completion_chunk.Choice: frozenset({"stop_reason", "token_ids"}),
    chat_completion_chunk.ChoiceDelta: frozenset({"reasoning_content"}),
}


def check_type(kind: type[BaseModel], answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, if it is of this kind to the letter. Raises `ValidationError` or `AssertionError`."""
    seen = without_nulls_the_sdk_forgot(answer) if kind is Completion else answer
    for part in parts_of(kind.model_validate(seen, strict=True)):
        missing = ALWAYS_THERE.get(type(part), frozenset()) - part.model_fields_set
        assert not missing, f"{type(part).__name__} lacks {sorted(missing)}"
        foreign = {*(part.model_extra or {})} - EXTENSIONS.get(type(part), frozenset())
        assert not foreign, f"{type(part).__name__} has {sorted(foreign)}, which is neither specified nor documented"
    return answer


def check_embeddings(answer: dict[str, Any]) -> dict[str, Any]:
    """As `check_type`; the type knows lists of numbers alone, and base64 is looked at by whoever asked for it."""
    seen = copy.deepcopy(answer)
    for entry in seen["data"]:
        entry["embedding"] = entry["embedding"] if isinstance(entry["embedding"], list) else [0.0]
    check_type(CreateEmbeddingResponse, seen)
    return answer


def without_nulls_the_sdk_forgot(completion: dict[str, Any]) -> dict[str, Any]:
    """A chunk's `finish_reason`, and what the first token of an echoed prompt has instead of a log-probability."""
    seen = copy.deepcopy(completion)
    for choice in seen["choices"]:
        if "finish_reason" in choice and choice["finish_reason"] is None:
            choice["finish_reason"] = "stop"
        for name in ("token_logprobs", "top_logprobs") if choice.get("logprobs") else ():
            values = choice["logprobs"][name]
            choice["logprobs"][name] = values[1:] if values[:1] == [None] else values
    return seen


def parts_of(value: Any) -> Iterator[BaseModel]:
    """The object and all objects inside."""
    if isinstance(value, BaseModel):
        yield value
        for name in type(value).model_fields:
            yield from parts_of(getattr(value, name))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from parts_of(entry)
    elif isinstance(value, dict):
        yield from parts_of(list(value.values()))
