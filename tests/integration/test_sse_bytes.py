"""Streams of a real server, byte by byte: any request's events read alike everywhere, and join to its whole answer."""

from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from tests.conformance.sse import DONE, read_chunks, read_events
from tests.effort import scaled
from tests.server_process import ServerProcess

# Lone surrogates are no text; the rest of Unicode is, line separators and what looks like an event included.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
LIKE_EVENTS = st.sampled_from(
    ["data: [DONE]\n\n", "\r\n\r\ndata: x", ": comment\n\n", '"}]}\n\n', "\u2028\u0085", "🐱👩\u200d🚀"]
)
SAMPLING = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0, 0.7, 2]),
        "seed": st.integers(0, 2**64 - 1),
        "max_tokens": st.integers(0, 12),
        "ignore_eos": st.booleans(),
    },
    optional={
        "n": st.integers(1, 3),
        "stop": st.lists(st.sampled_from(["a", " the", "e ", "\n", "é"]), min_size=1, max_size=3, unique=True),
        "include_stop_str_in_output": st.booleans(),
        "skip_special_tokens": st.booleans(),
        "top_k": st.integers(-1, 50),
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    },
)
DETAILS = st.fixed_dictionaries(
    {}, optional={"logprobs": st.integers(0, 3), "echo": st.booleans(), "return_token_ids": st.booleans()}
)
EXAMPLES = settings(
    max_examples=scaled(30),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def post(server: ServerProcess, path: str, body: dict[str, Any]) -> httpx.Response:
    response = server.http.post(path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response


def stream_and_whole(server: ServerProcess, path: str, body: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the stream, and the whole answer to the same request."""
    whole = {name: value for name, value in body.items() if name != "stream_options"}
    return post(server, path, {**body, "stream": True}).content, post(server, path, whole).json()


def decoded_by_the_sdk(stream: bytes, chunk_size: int) -> list[str]:
    """The data of each event, from a stream that comes in chunks of this size."""
    chunks = (stream[start : start + chunk_size] for start in range(0, len(stream), chunk_size))
    return [event.data for event in SSEDecoder().iter_bytes(chunks)]


def check_decoders_agree(stream: bytes) -> None:
    data = [event.data for event in read_events(stream)]
    for chunk_size in (1, 7, len(stream)):
        assert decoded_by_the_sdk(stream, chunk_size) == data
    assert data.count(DONE) == 1


def joined(chunks: list[dict[str, Any]], index: int) -> tuple[str, list[str]]:
    """The text of a choice, and its finish reasons."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    text = "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in choices)
    return text, [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]


@EXAMPLES
@given(prompt=TEXTS | LIKE_EVENTS, sampling=SAMPLING, details=DETAILS)
def test_a_completion_streams_what_it_answers(
    server: ServerProcess, prompt: str, sampling: dict[str, Any], details: dict[str, Any]
) -> None:
    stream, whole = stream_and_whole(server, "/v1/completions", {"prompt": prompt, **sampling, **details})
    check_decoders_agree(stream)
    for choice in whole["choices"]:
        assert joined(read_chunks(stream), choice["index"]) == (choice["text"], [choice["finish_reason"]])


@EXAMPLES
@given(question=TEXTS | LIKE_EVENTS, sampling=SAMPLING)
def test_a_chat_streams_what_it_answers(server: ServerProcess, question: str, sampling: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": question}], **sampling}
    stream, whole = stream_and_whole(server, "/v1/chat/completions", body)
    check_decoders_agree(stream)
    for choice in whole["choices"]:
        wanted = (choice["message"]["content"], [choice["finish_reason"]])
        assert joined(read_chunks(stream), choice["index"]) == wanted
