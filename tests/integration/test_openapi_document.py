"""The server held to its own OpenAPI document: what that allows is served, what it forbids is refused, and every answer
has a form that it declares."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import positive_data_acceptance

from tests.effort import scaled
from tests.server_process import ServerProcess

NUM_EXAMPLES = 20
POSTS = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/tokenize",
    "/detokenize",
]
GETS = ["/live", "/ready", "/health", "/version", "/metrics", "/v1/models", "/v1/models/{model}"]
ENDLESS = ["/events"]  # test_events.py holds each event to its schema

# What no schema can state, because the model decides it, or several parameters together.
BEYOND_SCHEMAS = re.compile(
    "maximum context length is"
    "|outside the vocabulary"
    "|the chat template (refused|failed on) the messages"
    "|is only allowed when stream is true"
    "|needs logprobs to be true"
    "|prompts times n must be"
    "|min_tokens must be at least 0 and at most"
    r"|structured_outputs\.json is not valid JSON"
    "|best_of must be at least n|cannot be streamed"
    "|two names of one"
    "|give either prompt or messages"
    "|max_tokens is required"  # by one of the two operations with this body
    "|must be one text, or as many as|leaves nothing of the document"
    "|the size of this model's embeddings"
    r"|(messages|input|tools|system)\[\d+\]"  # within them there are many forms
    "|it must have at least one token"  # where truncation leaves nothing, or the text is of marks alone
    r"|text\.format|output_format|output_config\.format"
    "|continue_final_message"
    "|tool_choice needs tools"
    "|the grammar (cannot be used|is too complex|allows no text)"
    r"|must be a valid integer, got -?\d+\.0|token ids or a list of those, got .*\d\.0"  # integers, for a schema
    r"|token ids or a list of those, got .*\d{19}"  # and so are these, which no id can be
)


@pytest.fixture(scope="module")
def brief_server() -> Iterator[ServerProcess]:
    """Whose answers are short, however many tokens are asked for."""
    running = ServerProcess("--max-model-len", "64")
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def document(brief_server: ServerProcess) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{brief_server.url}/openapi.json")


def check(document: BaseSchema, path: str, method: str, mode: GenerationMode) -> None:
    bounds = settings(
        max_examples=scaled(NUM_EXAMPLES),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate],
    )

    @bounds
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def send(case: Case[Any]) -> None:
        response = case.call(timeout=60)
        if response.status_code == 408:  # by a header that gives it less time than reading takes
            return
        case.validate_response(response, excluded_checks=[positive_data_acceptance])
        if mode == GenerationMode.POSITIVE and response.status_code not in (200, 404, 408):
            assert BEYOND_SCHEMAS.search(response.text), f"{case.body!r}: {response.text}"

    send()


@pytest.mark.parametrize("path", POSTS)
def test_what_the_document_allows_is_served(document: BaseSchema, path: str) -> None:
    check(document, path, "post", GenerationMode.POSITIVE)


@pytest.mark.parametrize("path", POSTS)
def test_what_the_document_forbids_is_refused(document: BaseSchema, path: str) -> None:
    check(document, path, "post", GenerationMode.NEGATIVE)


@pytest.mark.parametrize("path", GETS)
def test_what_is_asked_without_a_body_is_answered_as_the_document_says(document: BaseSchema, path: str) -> None:
    check(document, path, "get", GenerationMode.POSITIVE)


USER = [{"role": "user", "content": "hi"}]
CALLING = [*USER, {"role": "assistant", "tool_calls": [{"type": "function"}]}]
AT_BOUNDS: list[tuple[str, dict[str, Any], bool]] = [
    ("/v1/completions", {"prompt": ["hi", [5]], "max_tokens": 1}, True),
    ("/v1/completions", {"prompt": [["hi"]], "max_tokens": 1}, False),
    ("/v1/embeddings", {"input": [[5], "hi"]}, True),
    ("/v1/rerank", {"query": "hi", "documents": ["ho", {"text": "he", "title": 1}]}, True),
    ("/v1/rerank", {"query": "hi", "documents": "ho"}, False),
    ("/v1/rerank", {"query": "hi", "documents": [{"title": "ho"}]}, False),
    ("/v1/score", {"text_1": "hi", "text_2": ["ho", {"text": "he"}]}, True),
    ("/v1/score", {"text_1": "hi", "text_2": ["ho", 5]}, False),
    ("/v1/score", {"queries": ["hi"], "items": "", "text_1": None, "documents": None}, True),
    ("/v1/score", {"text_1": "", "text_2": "ho"}, False),
    ("/v1/score", {"queries": ["hi", {"text": ""}], "documents": ["ho", "he"]}, False),
    ("/v1/score", {}, False),
    ("/v1/score", {"data_1": "hi", "data_2": None}, False),
    ("/v1/score", {"data_1": "hi", "text_2": "ho"}, False),
    ("/v1/score", {"queries": "hi", "documents": "ho", "items": "ho"}, False),
    ("/v1/completions", {"prompt": "hi", "stop_token_ids": [-1]}, False),
    ("/v1/completions", {"prompt": "hi", "allowed_token_ids": []}, False),
    ("/v1/completions", {"prompt": "hi", "bad_words": ["x" * 1025]}, False),
    ("/v1/completions", {"prompt": "hi", "length_penalty": True}, False),
    ("/v1/completions", {"prompt": "hi", "structured_outputs": {"choice": ["a"] * 4097}}, False),
    ("/v1/completions", {"prompt": "hi", "structured_outputs": {"regex": "a" * (2**18 + 1)}}, False),
    ("/v1/chat/completions", {"messages": CALLING}, False),
    ("/v1/chat/completions", {"messages": USER, "max_tokens": 1, "response_format": {"type": "text", "x": 1}}, False),
    ("/v1/chat/completions", {"messages": USER, "max_tokens": 1, "response_format": {"type": "text", "x": None}}, True),
    ("/v1/messages", {"messages": USER, "max_tokens": 1, "system": {}}, False),
    ("/v1/messages/count_tokens", {"messages": USER, "stop_token_ids": [-1]}, False),
]


@pytest.mark.parametrize(("path", "body", "is_allowed"), AT_BOUNDS)
def test_the_document_and_the_server_draw_the_same_bounds(
    brief_server: ServerProcess, document: BaseSchema, path: str, body: dict[str, Any], is_allowed: bool
) -> None:
    """These are examples that random ones hardly ever come to."""
    content = document.raw_schema["paths"][path]["post"]["requestBody"]["content"]
    schema = {**content["application/json"]["schema"], "components": document.raw_schema["components"]}
    response = brief_server.http.post(path, json=body, timeout=60)
    assert jsonschema.Draft202012Validator(schema).is_valid(body) == is_allowed
    assert response.status_code == (200 if is_allowed else 400), response.text


def test_every_operation_of_the_document_is_tried(document: BaseSchema) -> None:
    operations = {(path, method) for path, methods in document.raw_schema["paths"].items() for method in methods}
    assert operations == {(path, "post") for path in POSTS} | {(path, "get") for path in [*GETS, *ENDLESS]}
