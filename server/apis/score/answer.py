"""POST /v1/score: from a body to a score for each pair. Independent of HTTP; `server.operations` gives it its paths."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from orcinus.engine.outputs import GenerationRequest
from orcinus.server.apis.answer_schemas import INTEGER, STRING, AnswerSchema, constant, list_of, object_with
from orcinus.server.apis.json_pieces import LazyList
from orcinus.server.apis.judging import JudgingGeneration, submit_pairs
from orcinus.server.apis.score.body import ScoreBody, parse_score, read_pairs
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.requests.caller import ANONYMOUS, Caller

SCORES = AnswerSchema(
    "Scores",
    object_with(
        id=STRING,
        object=constant("list"),
        created=INTEGER,
        model=STRING,
        data=list_of(object_with(index=INTEGER, object=constant("score"), score={"type": "number"})),
        usage=object_with(prompt_tokens=INTEGER, completion_tokens=INTEGER, total_tokens=INTEGER),
    ),
)


async def start_score(ctx: ServingContext, body: Mapping[str, Any], caller: Caller = ANONYMOUS) -> "ScoreGeneration":
    """Check and tokenize the texts, and submit them, as `judging.submit_pairs` does."""
    request = parse_score(body)
    pairs, field = read_pairs(request)
    generation, stream = await submit_pairs(ctx, request, pairs, caller, id_prefix="score", field=field)
    return ScoreGeneration(ctx, request, generation, stream)


class ScoreGeneration(JudgingGeneration):
    """An admitted request for scores."""

    def __init__(self, ctx: ServingContext, body: ScoreBody, request: GenerationRequest, stream: OutputStream) -> None:
        super().__init__(ctx, body, request, stream)
        self._created = int(time.time())

    def _whole(self) -> dict[str, Any]:
        return {
            "id": self.request.request_id,
            "object": "list",
            "created": self._created,
            "model": self._model_name,
            "data": LazyList(self._write_entries),
            "usage": self.usage.to_dict(),
        }

    def _write_entries(self) -> Iterator[bytes]:
        for index in range(len(self._numbers)):
            yield msgspec.json.encode({"index": index, "object": "score", "score": self._score(index)})
