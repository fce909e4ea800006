"""The `cohere` SDK: /v1/rerank by its first client, /v2/rerank by its second, which parses with classes of its own."""

import asyncio
from typing import Any

import cohere

MODEL = "orcinus-demo"
QUERY = "What is the capital of France?"
DOCUMENTS = ["Seven times nine is 63.", "The capital of France is Paris.", "A cat sleeps."]


def check_rerank_v1(url: str) -> None:
    client = cohere.Client(api_key="none", base_url=url)
    documents: list[Any] = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]
    answer = client.rerank(model=MODEL, query=QUERY, documents=documents, top_n=2, return_documents=True)
    assert_results(answer.results, 2)
    assert answer.id
    assert answer.meta is not None
    assert answer.meta.tokens is not None
    assert answer.meta.tokens.input_tokens
    for result in answer.results:
        assert result.document is not None
        assert result.document.text == DOCUMENTS[result.index]
    plain = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, return_documents=False)
    assert_results(plain.results, 3)
    assert all(result.document is None for result in plain.results)


def check_rerank_v2(url: str) -> None:
    client = cohere.ClientV2(api_key="none", base_url=url)
    answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=100, priority=1)
    assert_results(answer.results, 3)
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "2"


def check_rerank_v2_async(url: str) -> None:
    async def ask() -> Any:
        client = cohere.AsyncClientV2(api_key="none", base_url=url)
        return await client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=1)

    assert_results(asyncio.run(ask()).results, 1)


def check_errors(url: str) -> None:
    client = cohere.ClientV2(api_key="none", base_url=url)
    for error, body in (
        (cohere.BadRequestError, {"model": MODEL, "documents": []}),
        (cohere.NotFoundError, {"model": "rerank-v3.5", "documents": ["a"]}),
    ):
        try:
            client.rerank(query=QUERY, **body)
        except error:
            continue
        raise AssertionError(f"no {error.__name__}")


def assert_results(results: Any, count: int) -> None:
    scores = [result.relevance_score for result in results]
    assert len(scores) == count
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
