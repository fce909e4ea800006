"""Requests whose prompts are not continued: what the APIs share that read something from each of many prompts.

Independent of HTTP. Knows nothing of what the numbers mean.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.engine.sampling_params import SamplingParams
from orcinus.server.apis.generation import Generation
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.requests.bodies import PromptBody
from orcinus.server.requests.caller import Caller
from orcinus.server.requests.prompts import EncodedPrompt


def pooled_request(
    ctx: ServingContext,
    id_prefix: str,
    body: PromptBody,
    *,
    sampling: SamplingParams,
    prompts: Sequence[EncodedPrompt],
    caller: Caller,
) -> GenerationRequest:
    """Return what the engine is asked for: numbers of each prompt."""
    return GenerationRequest(
        request_id=f"{id_prefix}-{uuid.uuid4().hex}",
        prompts=[prompt.token_ids for prompt in prompts],
        sampling=sampling,
        priority=body.priority,
        cache_salt=ctx.cache_salt(caller.client, body.cache_salt),
        timeout_s=caller.deadline_s(body.timeout),
        asked_at=caller.asked_at,
        client=caller.client,
        on_choice_end=caller.on_choice_end,
    )


class PooledGeneration(Generation):
    """An admitted request of many prompts. `_numbers` has what came of each, as float32 in the machine's order."""

    def __init__(self, ctx: ServingContext, request: GenerationRequest, stream: OutputStream) -> None:
        super().__init__(ctx, request, stream)
        self._model_name = ctx.model_name
        self._numbers = [b""] * request.num_choices

    def _collect(self, output: RequestOutput) -> Iterator[int]:
        assert output.embedding is not None, "an input's only output has its numbers"
        self._numbers[output.index] = output.embedding
        yield len(output.embedding)

    def _prompt_usage(self) -> dict[str, int]:
        """Return the usage of an answer without tokens."""
        tokens = self.usage.prompt_tokens
        return {"prompt_tokens": tokens, "total_tokens": tokens}


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Blame `field` for what the engine's checks say of prompts and of choices, which are both made of it here."""
    try:
        yield
    except InvalidRequestError as error:
        error.param = field if error.param in ("prompt", "n") else error.param
        raise
