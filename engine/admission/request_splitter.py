"""How a request becomes sequences for the engine core: one for each choice, with a seed of its own.

Shared by `AsyncEngine` and `LLM`. What may come in is decided elsewhere.
"""

import hashlib
import itertools
import random
import time

import msgspec

from orcinus.engine.messages import AddRequest
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams


class RequestSplitter:
    """Makes the sequences of requests, and knows which ids and seeds were given out.

    With an `engine_seed`, requests that bring no seed get repeatable ones, in order of arrival.
    """

    def __init__(self, engine_seed: int | None) -> None:
        self._serial = itertools.count()
        self._seeds = random.SystemRandom() if engine_seed is None else random.Random(engine_seed)  # noqa: S311  (no secrets)

    def split(self, request: GenerationRequest, max_model_len: int, client: str = "") -> list[AddRequest]:
        """Return the choices of a request that passed `check_request`, by index, under ids that are unique.

        Each has `n` of 1, a seed and a bound on its tokens. Sample s of a request with seed S has seed S if s is 0,
        else a hash of both; without a seed, the next one of this splitter. `client` is the name that the engine knows
        it by.
        """
        now = time.monotonic()
        return [
            AddRequest(
                request_id=f"{request.request_id}.{next(self._serial)}",  # request ids need not be unique
                prompt_token_ids=prompt,
                sampling=self._own_sampling(request.sampling, sample, max_model_len - len(prompt)),
                arrival_time=now,
                priority=request.priority,
                cache_salt=request.cache_salt,
                adapter=request.adapter,
                client=client,
            )
            for prompt in request.prompts
            for sample in range(request.sampling.n)
        ]

    def _own_sampling(self, shared: SamplingParams, sample: int, num_tokens_left: int) -> SamplingParams:
        seed = self._seeds.getrandbits(63) if shared.seed is None else _sample_seed(shared.seed, sample)
        max_tokens = num_tokens_left if shared.max_tokens is None else shared.max_tokens
        return msgspec.structs.replace(shared, n=1, seed=seed, max_tokens=max_tokens)


def _sample_seed(seed: int, sample: int) -> int:
    if sample == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
