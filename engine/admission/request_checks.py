"""Which requests a model can serve, and how one of several choices becomes sequences for the engine core.

Shared by `AsyncEngine` and `LLM`. Knows nothing of queues and load: what is refused here can never be served.
"""

import hashlib
import random
from collections.abc import Iterator

import msgspec

from orcinus.engine.errors import ContextLengthError, InvalidRequestError
from orcinus.engine.messages import EngineInfo
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams


class ChoiceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a request: `sampling` has n of 1, a seed and a bound on its tokens."""

    index: int
    prompt: list[int]
    sampling: SamplingParams


def check_request(request: GenerationRequest, info: EngineInfo) -> None:
    """Raises `InvalidRequestError` or `ContextLengthError`, giving the limit and the value."""
    request.sampling.check_token_ids(info.vocab_size)
    _check_adapter(request.adapter, info.adapters)
    if not request.prompts:
        raise InvalidRequestError("at least one prompt is needed, got none", "prompt")
    for prompt in request.prompts:
        _check_prompt(prompt, info.vocab_size)
        check_context(len(prompt), request.sampling.max_tokens, info.max_model_len)


def seed_source(engine_seed: int | None) -> random.Random:
    """Where requests that bring no seed get theirs: repeatable in order of arrival if the engine has one."""
    return random.SystemRandom() if engine_seed is None else random.Random(engine_seed)  # noqa: S311  (no secrets)


def split_request(request: GenerationRequest, info: EngineInfo, seeds: random.Random) -> Iterator[ChoiceRequest]:
    """The choices of a request that passed `check_request`, by index.

    Sample s of a request with seed S has seed S if s is 0, else a hash of both; without one, the next of `seeds`.
    """
    n = request.sampling.n
    for index in range(request.num_choices):
        prompt = request.prompts[index // n]
        seed = (
            seeds.getrandbits(63) if request.sampling.seed is None else _choice_seed(request.sampling.seed, index % n)
        )
        yield ChoiceRequest(index=index, prompt=prompt, sampling=_own_sampling(request.sampling, prompt, seed, info))


def _own_sampling(shared: SamplingParams, prompt: list[int], seed: int, info: EngineInfo) -> SamplingParams:
    rest = info.max_model_len - len(prompt)
    max_tokens = rest if shared.max_tokens is None else shared.max_tokens
    return msgspec.structs.replace(shared, n=1, seed=seed, max_tokens=max_tokens)


def _choice_seed(seed: int, sample: int) -> int:
    if sample == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _check_adapter(adapter: str | None, loaded: list[str]) -> None:
    if adapter is not None and adapter not in loaded:
        those = f"the engine has {', '.join(loaded)}" if loaded else "the engine has none"
        raise InvalidRequestError(f"there is no adapter {adapter!r}: {those}", "adapter")


def _check_prompt(prompt: list[int], vocab_size: int) -> None:
    if not prompt:
        raise InvalidRequestError("the prompt is empty: it must have at least one token", "prompt")
    if not (min(prompt) >= 0 and max(prompt) < vocab_size):
        wrong = next(token_id for token_id in prompt if not 0 <= token_id < vocab_size)
        raise InvalidRequestError(
            f"the prompt has token id {wrong}, outside the vocabulary (0 to {vocab_size - 1})", "prompt"
        )


def check_context(num_prompt_tokens: int, max_tokens: int | None, max_model_len: int) -> None:
    """Raises `ContextLengthError` unless the prompt and what is to follow it fit."""
    wanted = 1 if max_tokens is None else max_tokens
    if num_prompt_tokens + wanted <= max_model_len:
        return
    asked = f" and max_tokens {max_tokens} ask for {num_prompt_tokens + wanted}" if max_tokens else " are too many"
    # Clients tell this error from others by the first words of OpenAI's message.
    raise ContextLengthError(
        f"this model's maximum context length is {max_model_len} tokens: the prompt's {num_prompt_tokens}{asked}",
        "max_tokens" if num_prompt_tokens < max_model_len else "prompt",
    )
