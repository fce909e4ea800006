"""The checks can fail: what a server gets wrong in one place is seen by the validation of all answers."""

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from orcinus.server.requests.parameters import Endpoint, parameter_table
from tests.conformance.contract import all_rows
from tests.conformance.rows.parameters import EFFECTS, PLACES, fail, key_of
from tests.conformance.schema import check_type
from tests.conformance.sse import read_chunks, read_events, read_json, read_named

HEAD = {"created": 1, "model": "m", "system_fingerprint": "f"}
USAGE = {
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "total_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 0},
}
CHAT: dict[str, Any] = {
    **HEAD,
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
COMPLETION: dict[str, Any] = {
    **HEAD,
    "id": "cmpl-1",
    "object": "text_completion",
    "choices": [{"index": 0, "text": "Hi", "logprobs": None, "finish_reason": None}],
}

BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no logprobs": lambda answer: answer["choices"][0].pop("logprobs"),
    "no refusal": lambda answer: answer["choices"][0]["message"].pop("refusal"),
    "no usage": lambda answer: answer.pop("usage"),
    "a number as text": lambda answer: answer.update(created="1"),
    "a float for an integer": lambda answer: answer["usage"].update(total_tokens=2.0),
    "another object": lambda answer: answer.update(object="chat.completion.chunk"),
    "another finish reason": lambda answer: answer["choices"][0].update(finish_reason="eos"),
    "a field of its own": lambda answer: answer["choices"][0]["message"].update(mood="good"),
    "null for a string": lambda answer: answer.update(id=None),
}


def test_good_answers_pass() -> None:
    assert check_type(ChatCompletion, CHAT) == CHAT
    assert check_type(Completion, COMPLETION) == COMPLETION


@pytest.mark.parametrize("break_it", BREAKS.values(), ids=BREAKS)
def test_an_answer_with_one_thing_wrong_fails(break_it: Callable[[dict[str, Any]], object]) -> None:
    answer = copy.deepcopy(CHAT)
    break_it(answer)
    with pytest.raises((AssertionError, ValidationError)):
        check_type(ChatCompletion, answer)


def test_a_documented_extension_passes_where_it_belongs_and_nowhere_else() -> None:
    answer = copy.deepcopy(CHAT)
    answer["choices"][0]["token_ids"] = [5]
    check_type(ChatCompletion, answer)
    answer["usage"]["token_ids"] = [5]
    with pytest.raises(AssertionError, match="token_ids"):
        check_type(ChatCompletion, answer)


def test_a_good_stream_is_read() -> None:
    stream = b': keep-alive\n\ndata: {"a":"\\u2028"}\n\n: keep-alive\n\ndata: [DONE]\n\n'
    assert read_chunks(stream) == [{"a": "\u2028"}]
    assert read_named(b'event: ping\ndata: {"type":"ping"}\n\n') == [{"type": "ping"}]


@pytest.mark.parametrize(
    "stream",
    [
        b'data: {"a":1}\n\n',
        b'data: {"a":1}\n\ndata: [DONE]\n',
        b'data: {"a":1}\n\ndata: [DONE]',
        b'data: {"a":1}\r\n\r\ndata: [DONE]\r\n\r\n',
        b'data:{"a":1}\n\ndata: [DONE]\n\n',
        b'data: {"a":\ndata: 1}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\n\n\ndata: [DONE]\n\n',
        b'id: 1\ndata: {"a":1}\n\ndata: [DONE]\n\n',
        b'event: x\ndata: {"a":1}\n\ndata: [DONE]\n\n',
        b'data: [DONE]\n\ndata: {"a":1}\n\n',
        b'data: {"a":"\xe2\x82"}\n\ndata: [DONE]\n\n',
        b'data: {"a":NaN}\n\ndata: [DONE]\n\n',
        b'data: {"a":1,"a":2}\n\ndata: [DONE]\n\n',
    ],
)
def test_a_stream_with_one_thing_wrong_fails(stream: bytes) -> None:
    with pytest.raises((AssertionError, ValueError)):
        read_chunks(stream)


def test_a_named_event_must_have_its_own_type() -> None:
    with pytest.raises(AssertionError):
        read_named(b'event: ping\ndata: {"type":"pong"}\n\n')


def test_json_is_read_strictly() -> None:
    for text in ("[Infinity]", '{"a":1,"a":1}', "[-Infinity]"):
        with pytest.raises(AssertionError):
            read_json(text)
    assert read_events(b"data: 1\n\n")


def test_every_parameter_has_its_check_and_every_check_its_parameter() -> None:
    table = parameter_table({endpoint: place.model for endpoint, place in PLACES.items()})
    assert set(EFFECTS) <= {key_of(parameter) for parameter in table if parameter.support == "supported"}
    assert set(PLACES) == set(get_args(Endpoint))
    with pytest.raises(AssertionError):
        fail(None)  # type: ignore[arg-type]
    without = [row.name for row in all_rows() if row.text.endswith("has no check")]
    assert not without


def test_no_two_rows_have_one_name() -> None:
    names = [row.name for row in all_rows()]
    assert len(set(names)) == len(names)
