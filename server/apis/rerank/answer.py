"""POST /v1/rerank: from a body to documents in order. Independent of HTTP; `server.operations` gives it its paths.

The answer has the fields of Cohere's, Jina's and vLLM's, for clients of any of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from orcinus.engine.outputs import GenerationRequest
from orcinus.server.apis.answer_schemas import INTEGER, STRING, AnswerSchema, Schema, list_of, object_with
from orcinus.server.apis.json_pieces import LazyList
from orcinus.server.apis.judging import JudgingGeneration, submit_pairs
from orcinus.server.apis.rerank.body import RerankBody, parse_rerank
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.requests.caller import ANONYMOUS, Caller
from orcinus.server.requests.judging_body import read_texts

_NUMBER: Schema = {"type": "number"}
_API_VERSION = {"version": "2"}  # Cohere's

RERANKING = AnswerSchema(
    "Reranking",
    object_with(
        id=STRING,
        model=STRING,
        results=list_of(object_with(index=INTEGER, relevance_score=_NUMBER)),
        usage=object_with(prompt_tokens=INTEGER, total_tokens=INTEGER),
        meta=object_with(
            api_version=object_with(version=STRING),
            tokens=object_with(input_tokens=INTEGER, output_tokens=INTEGER),
            cached_tokens=INTEGER,
        ),
    ),
)


async def start_rerank(ctx: ServingContext, body: Mapping[str, Any], caller: Caller = ANONYMOUS) -> "RerankGeneration":
    """Check and tokenize the documents, and submit them, as `judging.submit_pairs` does."""
    request = parse_rerank(body)
    pairs = [(request.query, text) for text in read_texts(request.documents, "documents")]
    generation, stream = await submit_pairs(ctx, request, pairs, caller, id_prefix="rerank", field="documents")
    return RerankGeneration(ctx, request, generation, stream)


class RerankGeneration(JudgingGeneration):
    """An admitted request to rerank."""

    def __init__(self, ctx: ServingContext, body: RerankBody, request: GenerationRequest, stream: OutputStream) -> None:
        super().__init__(ctx, body, request, stream)
        self._body = body

    def _whole(self) -> dict[str, Any]:
        return {
            "id": self.request.request_id,
            "model": self._model_name,
            "results": LazyList(self._write_results),
            "usage": self._prompt_usage(),
            "meta": {
                "api_version": _API_VERSION,
                "tokens": {"input_tokens": self.usage.prompt_tokens, "output_tokens": 0},
                "cached_tokens": self.usage.cached_tokens,
            },
        }

    def _write_results(self) -> Iterator[bytes]:
        """Write the best documents; of those with one score the first that was given comes first."""
        scores = [self._score(index) for index in range(len(self._numbers))]
        ranked = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        for index in ranked[: self._body.top_n or None]:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if self._body.return_documents:
                document = self._body.documents[index]
                result["document"] = {"text": document} if isinstance(document, str) else document
            yield msgspec.json.encode(result)
