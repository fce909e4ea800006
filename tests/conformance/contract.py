"""All rows, in the order of the report."""

from tests.conformance.registry import ROWS, Row
from tests.conformance.rows import (  # noqa: F401  (importing them registers their rows)
    anthropic,
    embeddings,
    endpoints,
    errors,
    logprobs,
    requests,
    reranking,
    responses,
    responses_api,
    streaming,
    structured,
    tools,
)
from tests.conformance.rows.parameters import parameter_rows

GROUPS = (
    *("completions", "chat", "models", "tokenize", "detokenize", "probes", "metrics", "head", "auth"),
    *("requests", "responses", "streaming", "logprobs", "errors", "parameters"),
    *("tools", "structured", "embeddings", "rerank", "score", "responses_api", "anthropic"),
)


def all_rows() -> list[Row]:
    """Grouped as the report shows them."""
    return sorted([*ROWS, *parameter_rows()], key=lambda row: GROUPS.index(row.name.partition(".")[0]))
