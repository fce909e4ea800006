"""Outputs of one choice as one: each text is written once and joined once, however many there are."""

import io
from typing import Any

import msgspec
import pytest

from orcinus.engine.frontend.output_buffer import FULL_LOGPROBS, FULL_TOKENS, OutputBuffer
from orcinus.engine.outputs import RequestOutput
from tests.unit.engine.fakes import packed, token_logprobs

FIRST = RequestOutput(
    index=1,
    prompt_index=2,
    text="a",
    token_ids=[97],
    num_cached_tokens=16,
    queue_time_s=0.5,
    prompt_logprobs=packed([None]),
)


def buffer_of(first: RequestOutput, *others: RequestOutput) -> OutputBuffer:
    buffer = OutputBuffer(first)
    for output in others:
        buffer.add(output)
    return buffer


def test_a_single_output_is_handed_on_as_it_is() -> None:
    assert buffer_of(FIRST).merged() is FIRST


def test_what_comes_once_is_kept_and_how_it_ended_is_that_of_the_last() -> None:
    middle = RequestOutput(index=1, prompt_index=2, text="bc", token_ids=[98, 99], logprobs=[token_logprobs(98, 1)] * 2)
    last = RequestOutput(
        index=1, prompt_index=2, token_ids=[100], finish_reason="stop", stop_reason=100, num_preemptions=3
    )
    assert buffer_of(FIRST, middle, last).merged() == msgspec.structs.replace(
        FIRST,
        text="abc",
        token_ids=[97, 98, 99, 100],
        logprobs=[token_logprobs(98, 1)] * 2,
        finish_reason="stop",
        stop_reason=100,
        num_preemptions=3,
    )


@pytest.mark.parametrize(
    ("output", "number"),
    [
        (RequestOutput(index=0, text="a", token_ids=[97], logprobs=[token_logprobs(97, 20)]), FULL_LOGPROBS // 21 + 1),
        (RequestOutput(index=0, text="a", token_ids=[97], logprobs=[token_logprobs(97, 0)]), FULL_LOGPROBS),
        (RequestOutput(index=0, text="a" * 64, token_ids=[97] * 64), FULL_TOKENS // 64),
    ],
)
def test_it_is_full_when_there_is_much_of_text_or_of_log_probabilities(output: RequestOutput, number: int) -> None:
    assert not buffer_of(*[output] * (number - 1)).is_full
    full = buffer_of(*[output] * number)
    assert full.is_full
    merged = full.merged()
    assert merged.text == output.text * number
    assert merged.logprobs == (output.logprobs and output.logprobs * number)


def test_outputs_themselves_are_not_changed() -> None:
    first, second = FIRST, RequestOutput(index=1, text="b", token_ids=[98])
    buffer_of(first, second).merged()
    assert (first.token_ids, second.token_ids) == ([97], [98])


def test_characters_are_written_once_and_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    writers: list[Any] = []

    class Counting(io.StringIO):
        num_written = num_joins = 0

        def __init__(self) -> None:
            super().__init__()
            writers.append(self)

        def write(self, text: str) -> int:
            self.num_written += len(text)
            return super().write(text)

        def getvalue(self) -> str:
            self.num_joins += 1
            return super().getvalue()

    monkeypatch.setattr("orcinus.engine.frontend.output_buffer.io.StringIO", Counting)
    outputs = [RequestOutput(index=0, text="abc", token_ids=[1])] * 1000
    assert buffer_of(*outputs).merged().text == "abc" * 1000
    (writer,) = writers
    assert (writer.num_written, writer.num_joins) == (3000, 1)
