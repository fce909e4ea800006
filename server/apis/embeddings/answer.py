"""POST /v1/embeddings: from a body to vectors. Independent of HTTP; `server.operations` gives it a path.

Every input is a prompt of which nothing is generated, and goes the way of all prompts. Knows nothing of how a vector
comes about.
"""

import math
import sys
from array import array
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams
from orcinus.server.apis.answer_schemas import INTEGER, STRING, AnswerSchema, constant, list_of, object_with
from orcinus.server.apis.embeddings.body import EmbeddingBody, parse_embedding
from orcinus.server.apis.json_pieces import LazyList
from orcinus.server.apis.pooled import PooledGeneration, naming, pooled_request
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.requests.caller import ANONYMOUS, Caller
from orcinus.server.requests.prompts import EncodedPrompt, encode_prompts
from orcinus.server.requests.sampling import tokens_to_keep
from orcinus.server.requests.schemas import MAX_INPUTS

_encode = msgspec.json.encode
_BYTES_PER_NUMBER = 4


EMBEDDINGS = AnswerSchema(
    "Embeddings",
    object_with(
        object=constant("list"),
        data=list_of(
            object_with(
                object=constant("embedding"),
                index=INTEGER,
                embedding={"anyOf": [list_of({"type": "number"}), STRING]},
            )
        ),
        model=STRING,
        usage=object_with(prompt_tokens=INTEGER, total_tokens=INTEGER),
    ),
)


async def start_embeddings(
    ctx: ServingContext, body: Mapping[str, Any], caller: Caller = ANONYMOUS
) -> "EmbeddingGeneration":
    """Check and tokenize the inputs, and submit them; nothing is awaited after the engine has admitted them.

    Raises what `server.errors.to_response` maps: `InvalidRequestError` and its kin, `QueueFullError`,
    `EngineUnavailableError`.
    """
    request = parse_embedding(body)
    ctx.check_model(request.model)
    ctx.check_admitting()
    _check_dimensions(request.dimensions, ctx.engine.info.hidden_size)
    with naming("input"):
        prompts = await _encode_inputs(ctx, request)
        sampling = SamplingParams(max_tokens=0, pooling=ctx.engine.info.pooling)
        generation = pooled_request(ctx, "embd", request, sampling=sampling, prompts=prompts, caller=caller)
        return EmbeddingGeneration(ctx, request, generation, ctx.engine.submit(generation))


class EmbeddingGeneration(PooledGeneration):
    """An admitted request for embeddings. Its vectors, which are most of its answer, are written one by one."""

    def __init__(
        self, ctx: ServingContext, body: EmbeddingBody, request: GenerationRequest, stream: OutputStream
    ) -> None:
        super().__init__(ctx, request, stream)
        self._body = body

    def _whole(self) -> dict[str, Any]:
        data = LazyList(lambda: _write_entries(self._numbers, self._body))
        return {"object": "list", "data": data, "model": self._model_name, "usage": self._prompt_usage()}


async def _encode_inputs(ctx: ServingContext, body: EmbeddingBody) -> list[EncodedPrompt]:
    _check_not_empty(body.input)
    return await encode_prompts(
        ctx.engine,
        body.input,
        add_special_tokens=body.add_special_tokens,
        num_kept=tokens_to_keep(ctx, body, max_tokens=0),
        max_tokens=0,
        field="input",
        limit=MAX_INPUTS,
    )


def _check_not_empty(given: Any) -> None:
    """Raise `InvalidRequestError` for an empty input, though some tokenizers make a token of it."""
    for index, part in enumerate(given if isinstance(given, list) else [given]):
        if part in ("", []):
            where = f"input[{index}]" if isinstance(given, list) else "input"
            raise InvalidRequestError(f"{where} is empty: it must have at least one token", "input")


def _check_dimensions(dimensions: int | None, hidden_size: int) -> None:
    if dimensions is not None and dimensions > hidden_size:
        raise InvalidRequestError(
            f"dimensions must be at most {hidden_size}, the size of this model's embeddings, got {dimensions}",
            "dimensions",
        )


def _write_entries(vectors: Sequence[bytes], body: EmbeddingBody) -> Iterator[bytes]:
    """Write the entries of `data` one by one, so that others get their turn in between."""
    write = _write_base64 if body.encoding_format == "base64" else _write_floats
    for index, vector in enumerate(vectors):
        written = write(_shorten(vector, body.dimensions))
        yield b'{"object":"embedding","index":%d,"embedding":%b}' % (index, written)


def _shorten(vector: bytes, dimensions: int | None) -> bytes:
    """Return the first numbers alone, made of length 1 again, for models that put what matters most there."""
    if dimensions is None or dimensions * _BYTES_PER_NUMBER == len(vector):
        return vector
    kept = array("f", vector[: dimensions * _BYTES_PER_NUMBER])
    length = math.hypot(*kept) or 1.0
    return array("f", [number / length for number in kept]).tobytes()


def _write_floats(vector: bytes) -> bytes:
    return _encode(array("f", vector).tolist())


def _write_base64(vector: bytes) -> bytes:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return b'"%b"' % b64encode(numbers)
