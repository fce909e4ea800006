"""How many log-probabilities one request may ask for: they are most of an answer that has any.

Counted before the first token is generated, by what a request may come to: each token of the prompt and of the output
has its own and its alternatives. Knows nothing of how they are written.
"""

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import MAX_LOGPROBS

DEFAULT_MAX_LOGPROBS = 2**20  # about 80 MB of JSON


def check_logprobs(request: GenerationRequest, limit: int | None, max_model_len: int) -> None:
    """Raise `InvalidRequestError` where a request asks for more than `limit`.

    None: 2**20, or what one choice over the whole context may have, where that is more.
    """
    sampling = request.sampling
    if sampling.logprobs is None and sampling.prompt_logprobs is None:
        return
    most = max(DEFAULT_MAX_LOGPROBS, max_model_len * (1 + MAX_LOGPROBS)) if limit is None else limit
    num_prompt = sampling.n * sum(map(len, request.prompts)) * _per_token(sampling.prompt_logprobs)
    num_tokens = sum(_num_generated(len(prompt), sampling.max_tokens, max_model_len) for prompt in request.prompts)
    num_output = sampling.n * num_tokens * _per_token(sampling.logprobs)
    if num_prompt + num_output > most:
        raise InvalidRequestError(
            f"a request may ask for at most {most} log-probabilities (max_logprobs_per_request), of all tokens of all"
            f" its choices and their alternatives; this one asks for {num_prompt + num_output}: {num_prompt} of"
            f" prompts and {num_output} of up to {sampling.n * num_tokens} generated tokens",
            "prompt_logprobs" if num_prompt > num_output else "logprobs",
        )


def _per_token(num_alternatives: int | None) -> int:
    return 0 if num_alternatives is None else 1 + num_alternatives


def _num_generated(num_prompt_tokens: int, max_tokens: int | None, max_model_len: int) -> int:
    return max_model_len - num_prompt_tokens if max_tokens is None else max_tokens
