"""What holds for streams, byte by byte."""

import contextlib
import itertools
from typing import Any

from openai._streaming import SSEDecoder

from tests.conformance.api import LONG, Api, check_error
from tests.conformance.registry import row
from tests.conformance.sse import Event, read_events, read_json

# Far more than can be generated before the longest deadline.
DOOMED = {**LONG, "max_tokens": 1900, "n": 16}
DEADLINES_S = (0.3, 1.0, 3.0, 9.0)


def texts(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


@row("streaming.framing", "Every event is `data: {json}` and an empty line; the last is [DONE], and nothing follows")
def framing(api: Api) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "Once"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ):
        stream = api.stream(path, body)
        *events, last = read_events(stream)
        assert last == Event("[DONE]")
        assert stream.count(b"[DONE]") == 1
        assert all(isinstance(read_json(event.data), dict) for event in events)


@row("streaming.sdk", "The SDK's own decoder reads the same events")
def sdk_decoder(api: Api) -> None:
    stream = api.stream("/v1/completions", {"prompt": "Once", "n": 2})
    decoded = [event.data for event in SSEDecoder().iter_bytes(iter([stream]))]
    assert decoded == [event.data for event in read_events(stream)]


@row("streaming.completions", "Chunks of a completion are `text_completion` too, and join to the whole answer")
def completions(api: Api) -> None:
    chunks = api.complete_stream(max_tokens=24)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert texts(chunks) == api.complete(max_tokens=24)["choices"][0]["text"]


@row("streaming.chat", "Chunks of a chat are `chat.completion.chunk`, and join to the whole answer")
def chat(api: Api) -> None:
    chunks = api.chat_stream()
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert texts(chunks) == api.chat()["choices"][0]["message"]["content"]


@row("streaming.identity", "All chunks of an answer have one id, model, time and fingerprint")
def identity(api: Api) -> None:
    for chunks in (api.chat_stream(), api.complete_stream()):
        for name in ("id", "model", "created", "system_fingerprint"):
            assert len({chunk[name] for chunk in chunks}) == 1


@row("streaming.role", "The first chunk of each chat choice, and no other, has the role and empty content")
def role(api: Api) -> None:
    chunks = api.chat_stream(n=3)
    for index in range(3):
        first, *others = [c["choices"][0]["delta"] for c in chunks if c["choices"][0]["index"] == index]
        assert first == {"role": "assistant", "content": ""}
        assert not any("role" in delta for delta in others)


@row("streaming.finish", "`finish_reason` is null until the last chunk of a choice, and then it is not")
def finish(api: Api) -> None:
    for chunks in (api.chat_stream(n=2), api.complete_stream(["a", "b"], n=2, max_tokens=6)):
        for index in {chunk["choices"][0]["index"] for chunk in chunks}:
            reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["index"] == index]
            assert reasons[-1] in {"stop", "length"}
            assert not any(reasons[:-1])


@row("streaming.interleaved", "The choices of a request stream side by side")
def interleaved(api: Api) -> None:
    chunks = api.complete_stream(["One", "Two"], max_tokens=40, ignore_eos=True)
    order = [index for index, _ in itertools.groupby(chunk["choices"][0]["index"] for chunk in chunks)]
    assert len(order) > 4


@row("streaming.no_empty", "No chunk is empty: each has text, a role or a finish reason")
def no_empty(api: Api) -> None:
    for chunk in [*api.complete_stream(max_tokens=24), *api.chat_stream()]:
        [choice] = chunk["choices"]
        assert choice["finish_reason"] or choice.get("text") or choice.get("delta")


@row("streaming.usage", "With `include_usage` chunks have `usage: null`, and one last chunk no choices and the usage")
def usage(api: Api) -> None:
    for ask, whole in ((api.complete_stream, api.complete), (api.chat_stream, api.chat)):
        *chunks, last = ask(stream_options={"include_usage": True})
        assert all(chunk["usage"] is None for chunk in chunks)
        assert last["choices"] == []
        counted = whole()["usage"]
        assert {**last["usage"], "prompt_tokens_details": 0} == {**counted, "prompt_tokens_details": 0}


@row("streaming.no_usage", "Without it no chunk has a `usage`, and each has its choice")
def no_usage(api: Api) -> None:
    for chunk in [*api.complete_stream(), *api.chat_stream()]:
        assert "usage" not in chunk
        assert len(chunk["choices"]) == 1


@row("streaming.running_usage", "With `continuous_usage_stats` every chunk has the usage so far")
def running_usage(api: Api) -> None:
    chunks = api.complete_stream(max_tokens=10, ignore_eos=True, stream_options={"continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 10


@row("streaming.timing", "With `include_timing` the last chunk's usage says where the time went")
def timing(api: Api) -> None:
    *chunks, last = api.complete_stream(stream_options={"include_timing": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert {"queue_time_s", "prefill_time_s", "decode_time_s"} <= set(last["usage"]["timing"])
    assert last["choices"] == []


@row("streaming.code_points", "Only whole code points go out, and the end is flushed")
def code_points(api: Api) -> None:
    question = "Write the emoji for cat."
    ids = api.chat(question, return_token_ids=True)["choices"][0]["token_ids"]
    for limit in range(1, len(ids) + 1):
        chunks = api.chat_stream(question, max_tokens=limit)
        assert texts(chunks) == api.chat(question, max_tokens=limit)["choices"][0]["message"]["content"]
        with_text = [chunk for chunk in chunks if texts([chunk])]
        assert all("\ufffd" not in texts([chunk]) for chunk in with_text[:-1])


@row("streaming.echo", "An echoed prompt is the beginning of the stream, whatever is in it")
def echo(api: Api) -> None:
    prompt = 'data: "quoted"\n\nnew line, tab\t, Zoë, 🐱, \u2028 and \\'
    assert texts(api.complete_stream(prompt, echo=True, max_tokens=3)).startswith(prompt)


@row("streaming.keep_alive", "A stream with nothing to say gets comments, so that nobody cuts it")
def keep_alive(api: Api) -> None:
    with contextlib.ExitStack() as holder:
        holder.enter_context(api.small.busy())
        asked = {"prompt": "x", "max_tokens": 1, "stream": True}
        with api.small.api.http.stream("POST", "/v1/completions", json=asked) as stream:
            pieces = stream.iter_bytes()
            comment = next(pieces)
            holder.close()
            rest = b"".join(pieces)
    assert comment.startswith(b":")
    assert len(read_events(comment + rest)) == 3  # the text, how it ended, and that it did


@row("streaming.deadline", "A deadline that passes within a stream is an error event, then [DONE]; no finish reason")
def deadline(api: Api) -> None:
    *chunks, error, done = read_events(doomed_stream(api, "/v1/completions", DOOMED))
    assert done == Event("[DONE]")
    assert check_error(read_json(error.data)["error"])["type"] == "timeout"
    assert not any(read_json(chunk.data)["choices"][0]["finish_reason"] for chunk in chunks)


def doomed_stream(api: Api, path: str, body: dict[str, Any]) -> bytes:
    """One that begins and is then cut by its deadline; on a slow machine the first deadline may be too short."""
    for timeout_s in DEADLINES_S:
        response = api.http.post(path, json={**body, "stream": True, "timeout": timeout_s})
        if response.status_code == 200:
            return response.content
    raise AssertionError("no stream began before its deadline")


@row("streaming.refused", "What is wrong before the first byte is a response with a status, not an event")
def refused(api: Api) -> None:
    assert api.refuse_completion(stream=True, temperature=9)["param"] == "temperature"
    assert api.refuse_chat(404, stream=True, model="gpt-5")["code"] == "model_not_found"
