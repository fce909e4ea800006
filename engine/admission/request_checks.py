"""Which requests a model can serve. Shared by `AsyncEngine` and `LLM`.

Queues and load are unknown here: what is refused can never be served.
"""

from orcinus.engine.errors import ContextLengthError, InvalidRequestError
from orcinus.engine.messages import EngineInfo
from orcinus.engine.outputs import GenerationRequest


def check_request(request: GenerationRequest, info: EngineInfo) -> None:
    """Raise `InvalidRequestError` or `ContextLengthError`, with the limit and the value, unless it can be served."""
    if request.sampling.pooling is None or request.sampling.label_token_ids:
        info.check_generates()
    request.sampling.check_token_ids(info.vocab_size)
    _check_adapter(request.adapter, info.adapters)
    if not request.prompts:
        raise InvalidRequestError("at least one prompt is needed, got none", "prompt")
    for prompt in request.prompts:
        _check_prompt(prompt, info.vocab_size)
        check_context(len(prompt), request.sampling.max_tokens, info.max_model_len)


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
    """Raise `ContextLengthError` unless the prompt and what is to follow it fit the context."""
    wanted = 1 if max_tokens is None else max_tokens
    if num_prompt_tokens + wanted <= max_model_len:
        return
    asked = f" and max_tokens {max_tokens} ask for {num_prompt_tokens + wanted}" if max_tokens else " are too many"
    # Clients tell this error from others by the first words of OpenAI's message.
    raise ContextLengthError(
        f"this model's maximum context length is {max_model_len} tokens: the prompt's {num_prompt_tokens}{asked}",
        "max_tokens" if num_prompt_tokens < max_model_len else "prompt",
        (num_prompt_tokens, wanted, max_model_len),
    )
