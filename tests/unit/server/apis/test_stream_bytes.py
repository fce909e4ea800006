"""The exact bytes of events, for outputs made by hand: one chunk each, whatever the timing of an engine."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.errors import RequestFailedError
from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.outputs import RequestOutput, RequestTiming
from orcinus.server.apis.chat.answer import start_chat_completion
from orcinus.server.apis.completions.answer import start_completion
from orcinus.server.apis.generation import OpenAIGeneration
from tests.unit.engine.fakes import FakeExecutor
from tests.unit.server.serving import Gate, Serving, serving, user

DONE = "data: [DONE]\n\n"


@pytest.fixture
async def silent(tmp_path: Path) -> AsyncIterator[Serving]:
    """An app whose model never says anything."""
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(before_step=gate)) as running:
        yield running
        gate.open()


async def complete(served: Serving, prompt: Any = "ab", **body: Any) -> OpenAIGeneration:
    return await start_completion(served.app.state.context, {"prompt": prompt, "stream": True, **body})


async def chat(served: Serving, **body: Any) -> OpenAIGeneration:
    body = {"messages": [user("x")], "stream": True, **body}
    return await start_chat_completion(served.app.state.context, body)


def said(text: str, finish_reason: Any = None, index: int = 0, **details: Any) -> RequestOutput:
    return RequestOutput(index=index, text=text, token_ids=[*text.encode()], finish_reason=finish_reason, **details)


def chosen(text: str) -> list[TokenLogprobs]:
    return [TokenLogprobs(token_id=byte, logprob=-0.5) for byte in text.encode()]


def encoded(generation: OpenAIGeneration, output: RequestOutput) -> bytes:
    return b"".join(generation.encode(output))


def events_in(events: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix("data: ")) for event in events.decode().split("\n\n") if event]


def written(generation: OpenAIGeneration, events: bytes) -> str:
    """The events, less what all chunks of a generation begin with."""
    head = generation._head.decode()
    text = events.decode()
    assert all(event.startswith(f"data: {head},") for event in text.removesuffix(DONE).split("\n\n") if event)
    return events.decode().replace(head + ",", "")


async def test_chunks_of_a_completion(silent: Serving) -> None:
    generation = await complete(silent, n=2)
    assert written(generation, encoded(generation, said("Hi", index=1))) == (
        'data: "choices":[{"index":1,"text":"Hi","logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert written(generation, encoded(generation, said(' "é\n\n', index=1))) == (
        'data: "choices":[{"index":1,"text":" \\"é\\n\\n","logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert written(generation, encoded(generation, said("!", "stop", index=1, stop_reason="x"))) == (
        'data: "choices":[{"index":1,"text":"!","logprobs":null,"finish_reason":null}]}\n\n'
        'data: "choices":[{"index":1,"text":"","logprobs":null,"finish_reason":"stop","stop_reason":"x"}]}\n\n'
    )
    assert written(generation, encoded(generation, said("", "length"))) == (
        'data: "choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}\n\n'
    )
    assert b"".join(generation.encode_end()) == DONE.encode()


async def test_chunks_of_a_chat(silent: Serving) -> None:
    generation = await chat(silent)
    assert written(generation, encoded(generation, said("Hi"))) == (
        'data: "choices":[{"index":0,"delta":{"role":"assistant","content":""},'
        '"logprobs":null,"finish_reason":null}]}\n\n'
        'data: "choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert written(generation, encoded(generation, said(" you"))) == (
        'data: "choices":[{"index":0,"delta":{"content":" you"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert written(generation, encoded(generation, said("", "stop"))) == (
        'data: "choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    )


@pytest.mark.parametrize("start", [complete, chat])
async def test_text_that_is_held_back_makes_no_chunk(silent: Serving, start: Any) -> None:
    generation = await start(silent)
    held = RequestOutput(index=0, token_ids=[0xC3])
    assert encoded(generation, held) == b""
    assert encoded(generation, said("é"))
    assert encoded(generation, held) == b""


async def test_usage_is_null_in_chunks_and_whole_in_the_last(silent: Serving) -> None:
    generation = await complete(silent, stream_options={"include_usage": True})
    first = written(generation, encoded(generation, said("abc", num_cached_tokens=1)))
    assert first.endswith('"finish_reason":null}],"usage":null}\n\n')
    second = written(generation, encoded(generation, said("abc")))
    assert second.endswith('"finish_reason":null}],"usage":null}\n\n')
    encoded(generation, said("", "stop"))
    assert written(generation, b"".join(generation.encode_end())) == (
        'data: "choices":[],"usage":{"prompt_tokens":2,"completion_tokens":6,"total_tokens":8,'
        '"prompt_tokens_details":{"cached_tokens":1}}}\n\ndata: [DONE]\n\n'
    )


async def test_timing_is_an_extension_of_the_last_usage(silent: Serving) -> None:
    generation = await complete(silent, n=2, stream_options={"include_timing": True})
    for index in range(2):
        timing = RequestTiming(queue_time_s=0.5 + index, prefill_time_s=1.5, decode_time_s=2.0, num_preemptions=1)
        encoded(generation, said("a", "stop", index=index, timing=timing))
    assert written(generation, b"".join(generation.encode_end())) == (
        'data: "choices":[],"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,'
        '"prompt_tokens_details":{"cached_tokens":0},"timing":{"queue_time_s":1.5,"prefill_time_s":1.5,'
        '"decode_time_s":2.0,"cached_tokens":0,"preemptions":2}}}\n\ndata: [DONE]\n\n'
    )
    assert generation.headers()["server-timing"] == (
        "queue;dur=1500.000, prefill;dur=1500.000, decode;dur=2000.000, cached_tokens;desc=0, preemptions;desc=2"
    )


@pytest.mark.parametrize("body", [{}, {"logprobs": True}, {"return_token_ids": True}])
@pytest.mark.parametrize("start", [complete, chat])
async def test_text_comes_before_the_chunk_that_tells_why_it_ended(silent: Serving, start: Any, body: Any) -> None:
    body = {**body, "logprobs": 0} if start is complete and "logprobs" in body else body
    generation = await start(silent, **body)
    outputs = [said("a", logprobs=chosen("a")), said("b", "stop", logprobs=chosen("b"), stop_reason="x")]
    events = [event for output in outputs for event in events_in(encoded(generation, output))]
    *others, last = [event["choices"][0] for event in events]
    assert [choice["finish_reason"] for choice in others] == [None] * len(others)
    assert not any("stop_reason" in choice for choice in others)
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "x")
    assert last["delta" if start is chat else "text"] == ({} if start is chat else "")
    text = [choice["text"] if start is complete else choice["delta"].get("content", "") for choice in others]
    assert "".join(text) == "ab"
    if "return_token_ids" in body:
        assert [token_id for choice in others for token_id in choice.get("token_ids", [])] == [97, 98]
        assert last["token_ids"] == []
    if "logprobs" in body:
        assert others[-1]["logprobs"] is not None
        assert not last["logprobs"] or not any(last["logprobs"].values())


async def test_an_end_without_text_has_no_chunk_of_text(silent: Serving) -> None:
    for generation, empty in ((await complete(silent), {"text": ""}), (await chat(silent), {"delta": {}})):
        encoded(generation, said("a"))
        [event] = events_in(encoded(generation, RequestOutput(index=0, token_ids=[256], finish_reason="stop")))
        assert event["choices"] == [{"index": 0, **empty, "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize("n", [1, 2])
async def test_the_chunk_with_the_role_counts_nothing_of_its_choice(silent: Serving, n: int) -> None:
    generation = await chat(silent, n=n, stream_options={"continuous_usage_stats": True})
    num_before = 0
    for index in range(n):
        assert encoded(generation, RequestOutput(index=index, token_ids=[0xC3])) == b""
        role, text = events_in(encoded(generation, said("ab", index=index)))
        assert role["choices"][0]["delta"]["role"] == "assistant"
        assert role["usage"]["completion_tokens"] == num_before
        assert role["usage"]["total_tokens"] == role["usage"]["prompt_tokens"] + num_before
        num_before += 3
        assert text["usage"]["completion_tokens"] == num_before


async def test_usage_comes_only_where_it_was_asked_for(silent: Serving) -> None:
    for start in (complete, chat):
        generation = await start(silent)
        events = encoded(generation, said("a")) + encoded(generation, said("b", "stop"))
        assert b"usage" not in events + b"".join(generation.encode_end())


async def test_running_usage_is_that_of_the_moment(silent: Serving) -> None:
    generation = await chat(silent, stream_options={"continuous_usage_stats": True})
    assert '"completion_tokens":3,' in written(generation, encoded(generation, said("abc")))
    assert '"completion_tokens":5,' in written(generation, encoded(generation, said("de")))
    assert '"completion_tokens":6,' in written(generation, encoded(generation, said("f", "stop")))
    assert b"".join(generation.encode_end()) == DONE.encode()


async def test_echo_comes_once_with_the_logprobs_of_the_prompt(silent: Serving) -> None:
    generation = await complete(silent, echo=True, logprobs=0)
    prompt_logprobs = [None, *chosen("b")]
    first = encoded(generation, said("c", logprobs=chosen("c"), prompt_logprobs=prompt_logprobs))
    assert written(generation, first) == (
        'data: "choices":[{"index":0,"text":"abc","logprobs":{"tokens":["a","b","c"],'
        '"token_logprobs":[null,-0.5,-0.5],"top_logprobs":[null,{"b":-0.5},{"c":-0.5}],"text_offset":[0,1,2]},'
        '"finish_reason":null}]}\n\n'
    )
    assert written(generation, encoded(generation, said("d", logprobs=chosen("d")))) == (
        'data: "choices":[{"index":0,"text":"d","logprobs":{"tokens":["d"],"token_logprobs":[-0.5],'
        '"top_logprobs":[{"d":-0.5}],"text_offset":[3]},"finish_reason":null}]}\n\n'
    )


async def test_special_tokens_that_are_not_written_take_no_room(silent: Serving) -> None:
    for skip, offsets in ((True, [0, 0, 1]), (False, [0, 13, 14])):
        generation = await complete(silent, [256, 97, 98], echo=True, logprobs=0, skip_special_tokens=skip)
        entries = [None, *chosen("ab")]
        events = encoded(generation, said("", "length", prompt_logprobs=entries, logprobs=[]))
        assert f'"text_offset":{offsets}'.replace(" ", "") in events.decode()


async def test_chat_logprobs_go_with_their_chunk(silent: Serving) -> None:
    generation = await chat(silent, logprobs=True)
    encoded(generation, said("a", logprobs=chosen("a")))
    assert written(generation, encoded(generation, said("b", logprobs=chosen("b")))) == (
        'data: "choices":[{"index":0,"delta":{"content":"b"},"logprobs":{"content":[{"token":"b","logprob":-0.5,'
        '"bytes":[98],"top_logprobs":[]}],"refusal":null},"finish_reason":null}]}\n\n'
    )


async def test_token_ids_of_the_prompt_come_with_the_first_chunk_alone(silent: Serving) -> None:
    completion = await complete(silent, return_token_ids=True)
    first, second = (written(completion, encoded(completion, said(text))) for text in ("c", "d"))
    assert '"token_ids":[99],"prompt_token_ids":[97,98]' in first
    assert '"token_ids":[100]' in second
    assert "prompt_token_ids" not in second
    conversation = await chat(silent, return_token_ids=True)
    first, second = (written(conversation, encoded(conversation, said(text))) for text in ("c", "d"))
    assert first.startswith('data: "prompt_token_ids":[')
    assert first.count("prompt_token_ids") == 1
    assert "prompt_token_ids" not in second


@pytest.mark.parametrize("finish_reason", ["error", "abort"])
async def test_an_output_that_failed_is_an_error_and_no_chunk(silent: Serving, finish_reason: str) -> None:
    generation = await complete(silent)
    with pytest.raises(RequestFailedError, match="broken"):
        encoded(generation, said("x", finish_reason, error="broken"))
    with pytest.raises(RequestFailedError, match="before it was complete"):
        b"".join(generation.encode_end())
