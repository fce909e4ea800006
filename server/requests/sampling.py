"""From a validated body to what the engine is asked for. Knows both, and nothing of tokens' text or answers."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import Grammar, SamplingParams
from orcinus.server.caller_key import max_tokens_limit
from orcinus.server.context import ServingContext, ServingEngine
from orcinus.server.errors import shown
from orcinus.server.requests.bodies import GenerationBody, PromptBody
from orcinus.server.requests.caller import Caller
from orcinus.server.requests.prompts import EncodedPrompt
from orcinus.server.requests.schemas import MAX_BAD_WORD_CHARS

MAX_CHOICES = 1024  # prompts x n

_MAX_TOKENS = ("max_completion_tokens", "max_tokens")
_WITH_MODEL_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def to_sampling_params(
    body: GenerationBody,
    defaults: Mapping[str, float],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    bad_words: Sequence[tuple[int, ...]] = (),
    grammar: Grammar | None = None,
) -> SamplingParams:
    """Return how the engine is to sample. `logprobs` is the number of alternatives, 0 for the chosen token's alone.

    `defaults` are the model's own, for what the body does not set. `bad_words` come from `encode_bad_words`.
    Raises `InvalidRequestError`.
    """
    return SamplingParams(
        n=body.n,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_logit_bias(body.logit_bias),
        seed=body.seed,
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        include_stop_str_in_output=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        allowed_token_ids=tuple(body.allowed_token_ids),
        bad_words_token_ids=tuple(bad_words),
        grammar=grammar,
        **{name: _value(body, defaults, name) for name in _WITH_MODEL_DEFAULTS},
    )


async def encode_bad_words(engine: ServingEngine, words: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the tokens of each word as a text begins with it, and as it follows a space."""
    for word in words:
        if not 1 <= len(word) <= MAX_BAD_WORD_CHARS:
            raise InvalidRequestError(
                f"bad_words have 1 to {MAX_BAD_WORD_CHARS} characters each, got {len(word)}", "bad_words"
            )
    spellings = [spelling for word in words for spelling in (word, " " + word.lstrip())]
    encoded: dict[tuple[int, ...], None] = {}
    for text in spellings:
        encoded[tuple(await engine.encode(text, add_special_tokens=False))] = None
        await asyncio.sleep(0)  # each is short, but there may be many
    return [ids for ids in encoded if ids]


def _value(body: GenerationBody, defaults: Mapping[str, float], name: str) -> Any:
    stated = getattr(body, name)
    return stated if name in body.model_fields_set else defaults.get(name, stated)


def to_request(
    ctx: ServingContext,
    response_id: str,
    body: GenerationBody,
    *,
    sampling: SamplingParams,
    prompts: Sequence[EncodedPrompt],
    caller: Caller,
) -> GenerationRequest:
    """Return what the engine is asked for. Raises `InvalidRequestError` for too many choices, or too many tokens."""
    if (num_choices := len(prompts) * sampling.n) > MAX_CHOICES:
        raise InvalidRequestError(
            f"prompts times n must be at most {MAX_CHOICES}, got {len(prompts)} x {sampling.n} = {num_choices}",
            "prompt" if sampling.n == 1 else "n",
        )
    token_ids = [prompt.token_ids for prompt in prompts]
    return GenerationRequest(
        request_id=response_id,
        prompts=token_ids,
        sampling=_bounded(sampling, body, ctx.engine.info.max_model_len - max(map(len, token_ids))),
        priority=body.priority,
        cache_salt=ctx.cache_salt(caller.client, body.cache_salt),
        timeout_s=caller.deadline_s(body.timeout),
        asked_at=caller.asked_at,
        client=caller.client,
        on_choice_end=caller.on_choice_end,
    )


def _bounded(sampling: SamplingParams, body: GenerationBody, num_left: int) -> SamplingParams:
    """Return the parameters within what the client's key may have generated. `num_left` tokens fit the context.

    A request that does not say gets what it may have. Raises `InvalidRequestError` for one that asks for more.
    """
    limit = max_tokens_limit()
    if limit is None:
        return sampling
    asked = [name for name in _MAX_TOKENS if name in body.model_fields_set and getattr(body, name) is not None]
    if not asked:
        most = max(num_left, 1) if sampling.max_tokens is None else sampling.max_tokens
        return msgspec.structs.replace(sampling, max_tokens=min(most, limit.value))
    if sampling.max_tokens is not None and sampling.max_tokens > limit.value:
        raise InvalidRequestError(
            f"{asked[0]} may be at most {limit.value} ({limit.source}), got {sampling.max_tokens}", asked[0]
        )
    return sampling


def tokens_to_keep(ctx: ServingContext, body: PromptBody, max_tokens: int | None) -> int | None:
    """Return how many of a prompt's last tokens `truncate_prompt_tokens` keeps; None: all."""
    if body.truncate_prompt_tokens != -1:
        return body.truncate_prompt_tokens
    return max(ctx.engine.info.max_model_len - (1 if max_tokens is None else max_tokens), 1)


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidRequestError(f"logit_bias has key {shown(key)}, which is no token id", "logit_bias")
    return {int(key): value for key, value in bias.items()}
