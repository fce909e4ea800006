"""Server-sent events become times and counts: on handmade times, without a server."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.server.load.answers import AnswerStream, RequestFailedError, RequestRecord

USAGE = {"prompt_tokens": 9, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 4}}
DONE = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(piece: str, finish_reason: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": piece, "finish_reason": finish_reason}], usage=None)


def delta(finish_reason: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": finish_reason}])


def fed(*pieces: tuple[float, bytes]) -> AnswerStream:
    stream = AnswerStream()
    for time_s, data in pieces:
        stream.feed(time_s, data)
    return stream


def record(*pieces: tuple[float, bytes]) -> RequestRecord:
    """Sent at 10 s, asked for 9 and 6 tokens."""
    return fed(*pieces).record(10.0, 9, 6)


def test_times_are_those_of_the_chunks_with_text() -> None:
    answer = record((10.5, text("a")), (10.75, text("b")), (11.5, text("c")), (11.5, text("", "length")), (12.0, DONE))
    assert answer.chunk_times_s == [10.5, 10.75, 11.5]
    assert answer.ttft_s == 0.5
    assert answer.gaps_s == [0.25, 0.75]
    assert answer.e2e_s == 1.5
    assert answer.finish_reason == "length"


def test_the_role_of_a_chat_is_no_token_and_reasoning_is() -> None:
    answer = record(
        (10.1, delta(role="assistant", content="")),
        (10.2, delta(role="assistant", content=None)),
        (10.5, delta(reasoning_content="hm")),
        (10.6, delta(reasoning="hm")),
        (10.7, delta(content="yes")),
        (10.8, delta("stop")),
    )
    assert answer.chunk_times_s == [10.5, 10.6, 10.7]
    assert answer.ended_s == 10.8


def test_several_tokens_in_a_chunk_are_counted_by_the_usage() -> None:
    answer = record(
        (10.5, text("abc")), (11.5, text("def", "length")), (11.6, event(choices=[], usage=USAGE)), (11.6, DONE)
    )
    assert (answer.output_tokens, answer.prompt_tokens, answer.cached_tokens) == (6, 9, 4)
    assert answer.gaps_s == [1.0]
    assert answer.tpot_s == pytest.approx(1.0 / 5)
    assert answer.e2e_s == 1.5


def test_without_a_usage_every_chunk_is_a_token() -> None:
    answer = record((10.5, text("a")), (11.0, text("b")), (11.5, text("c", "stop")), (11.5, DONE))
    assert (answer.output_tokens, answer.completion_tokens, answer.prompt_tokens) == (3, None, None)
    assert answer.tpot_s == 0.5


def test_one_token_has_no_time_per_token() -> None:
    assert record((10.5, text("a", "stop"))).tpot_s is None


def test_an_answer_without_text_has_its_first_token_at_its_end() -> None:
    answer = record((10.5, text("")), (11.0, text("", "stop")), (11.0, event(choices=[], usage=USAGE)))
    assert (answer.ttft_s, answer.e2e_s, answer.output_tokens) == (1.0, 1.0, 6)


def test_an_answer_ends_with_its_last_text_where_nothing_says_why() -> None:
    answer = record((10.5, text("a")), (11.0, text("")), (11.5, DONE))
    assert (answer.e2e_s, answer.finish_reason) == (0.5, None)


def test_comments_other_fields_and_carriage_returns_are_passed_over() -> None:
    lines = b": ping\r\nevent: message\r\nid: 4\r\n" + text("a").replace(b"\n", b"\r\n") + b"data:[DONE]\r\n"
    assert record((10.5, lines)).chunk_times_s == [10.5]


@pytest.mark.parametrize("pieces", [[], [text("a")], [event(choices=[], usage=USAGE)], [DONE]])
def test_a_stream_that_stops_before_its_end_failed(pieces: list[bytes]) -> None:
    with pytest.raises(RequestFailedError, match="the stream stopped before the end of the answer"):
        record(*((10.5, piece) for piece in pieces))


def test_a_stream_may_end_without_a_finish_reason_or_without_done() -> None:
    assert record((10.5, text("a")), (10.5, DONE)).finish_reason is None
    assert record((10.5, text("a", "stop"))).finish_reason == "stop"


@pytest.mark.parametrize("error", [{"message": "out of memory", "code": None}, "out of memory"])
def test_an_error_in_the_stream_is_told_and_counted_apart_from_its_words(error: Any) -> None:
    with pytest.raises(RequestFailedError, match="out of memory") as raised:
        fed((10.5, text("a")), (10.6, event(error=error)))
    assert raised.value.reason == "an error in the stream"


@pytest.mark.parametrize("data", [b"{", b'{"choices": 3}', b"[]", b'{"choices": [{"text": "\xff"}]}'])
def test_an_event_that_is_none_of_openais_fails_the_request(data: bytes) -> None:
    with pytest.raises(RequestFailedError, match="not what OpenAI's API has"):
        fed((10.5, b"data: " + data + b"\n\n"))


@settings(deadline=None)
@given(st.data())
def test_bytes_may_be_cut_anywhere(data: st.DataObject) -> None:
    whole = text("é", None) + b": ping\n\n" + text("b", "length") + event(choices=[], usage=USAGE) + DONE
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1))))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    answer = record(*((11.0, piece) for piece in pieces))
    assert answer.chunk_times_s == [11.0, 11.0]
    assert answer.output_tokens == 6
    assert answer.finish_reason == "length"
