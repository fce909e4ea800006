"""Deltas of tokens become outputs: text, aligned logprobs, why it ended, and whether the engine must be told."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.engine.frontend.output_buffer import OutputBuffer
from orcinus.engine.frontend.output_processor import OutputProcessor
from orcinus.engine.messages import RequestDelta, TokenLogprobs
from orcinus.engine.outputs import RequestOutput
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.fakes import (
    END_OF_TEXT,
    MESSAGE_END,
    MESSAGE_START,
    packed,
    token_logprobs,
    write_byte_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(str(write_byte_tokenizer(tmp_path_factory.mktemp("model"))))


def processor(tokenizer: Tokenizer, **sampling: Any) -> OutputProcessor:
    return OutputProcessor(tokenizer, 3, [65], SamplingParams(**sampling))


def delta(text: str | list[int] = "", finish_reason: Any = None, **fields: Any) -> RequestDelta:
    token_ids = list(text.encode()) if isinstance(text, str) else text
    return RequestDelta(request_id="r", token_ids=token_ids, finish_reason=finish_reason, **fields)


def logprobs(text: str) -> list[TokenLogprobs]:
    return [token_logprobs(token_id, 2) for token_id in text.encode()]


def test_text_tokens_and_the_first_outputs_facts_pass_through(tokenizer: Tokenizer) -> None:
    output = processor(tokenizer).process(
        delta("hi", num_cached_tokens=16, queue_time_s=0.5, prompt_logprobs=packed([None]))
    )
    assert output == RequestOutput(
        index=3, text="hi", token_ids=[104, 105], num_cached_tokens=16, queue_time_s=0.5, prompt_logprobs=packed([None])
    )


def test_part_of_a_code_point_waits_and_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    whale = "🐋".encode()
    choice = processor(tokenizer)
    assert choice.process(delta([*whale[:2]])).text == ""
    assert choice.process(delta([*whale[2:]])).text == "🐋"
    assert choice.process(delta([*whale[:3]], "length")).text == "\N{REPLACEMENT CHARACTER}"
    assert choice.is_finished
    assert not choice.needs_abort


def test_end_of_sequence_has_no_text_and_counts(tokenizer: Tokenizer) -> None:
    choice = processor(tokenizer, skip_special_tokens=False)
    output = choice.process(delta([104, END_OF_TEXT], "stop"))
    assert (output.text, output.token_ids) == ("h", [104, END_OF_TEXT])
    assert choice.num_output_tokens == 2


def test_stop_token_has_no_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    stopped = delta("a.", "stop", stop_reason=46)
    output = processor(tokenizer).process(stopped)
    assert (output.text, output.stop_reason) == ("a", 46)
    assert processor(tokenizer, include_stop_str_in_output=True).process(stopped).text == "a."
    assert processor(tokenizer).process(delta("a.", "length")).text == "a."


def test_tokens_after_a_stop_string_are_dropped_with_their_logprobs(tokenizer: Tokenizer) -> None:
    choice = processor(tokenizer, stop=("END",), logprobs=2)
    assert choice.process(delta("xE", logprobs=logprobs("xE"))).text == "x"
    output = choice.process(delta("NDmore", logprobs=logprobs("NDmore")))
    assert (output.text, output.token_ids, output.finish_reason, output.stop_reason) == ("", [78, 68], "stop", "END")
    assert output.logprobs == logprobs("ND")
    assert choice.num_output_tokens == 4
    assert choice.needs_abort


def test_stop_string_in_the_last_delta_wins_and_needs_no_abort(tokenizer: Tokenizer) -> None:
    choice = processor(tokenizer, stop=("END",))
    output = choice.process(delta("aEND", "length"))
    assert (output.text, output.finish_reason, output.stop_reason) == ("a", "stop", "END")
    assert not choice.needs_abort


def test_stop_string_can_stay_in_the_text(tokenizer: Tokenizer) -> None:
    choice = processor(tokenizer, stop=("END",), include_stop_str_in_output=True)
    assert choice.process(delta("aENDb")).text == "aEND"


def test_held_back_text_comes_with_the_end(tokenizer: Tokenizer) -> None:
    choice = processor(tokenizer, stop=("END",))
    assert choice.process(delta("aEN")).text == "a"
    assert choice.process(delta([END_OF_TEXT], "stop")).text == "EN"


def test_stop_string_before_min_tokens_does_not_stop(tokenizer: Tokenizer) -> None:
    choice = processor(tokenizer, stop=("b",), min_tokens=3, max_tokens=9)
    assert choice.process(delta("ab")).text == "ab"
    output = choice.process(delta("b"))
    assert (output.text, output.stop_reason) == ("", "b")


def test_stop_string_completed_by_the_token_that_reaches_min_tokens_stops(tokenizer: Tokenizer) -> None:
    choice = processor(tokenizer, stop=("END",), min_tokens=3, max_tokens=9)
    assert choice.process(delta("END")).stop_reason == "END"


pieces = st.lists(st.integers(0, 1000), max_size=6)


@settings(deadline=None, max_examples=150)
@given(st.text(alphabet="abé🐋", max_size=20), pieces, st.integers(0, 9), st.booleans())
def test_outputs_merge_to_the_same_however_the_deltas_are_cut(
    tokenizer: Tokenizer, text: str, cuts: list[int], min_tokens: int, is_finished: bool
) -> None:
    tokens = list(text.encode())

    def run(bounds: list[int]) -> RequestOutput:
        choice = processor(tokenizer, stop=("ba", "é🐋"), min_tokens=min_tokens, max_tokens=99, logprobs=2)
        merged = OutputBuffer(RequestOutput(index=3))
        for start, end in pairwise(bounds):
            part = tokens[start:end]
            is_last = is_finished and end == len(tokens)
            entries = [token_logprobs(token_id, 2) for token_id in part]
            merged.add(choice.process(delta(part, "length" if is_last else None, logprobs=entries)))
            if choice.is_finished:
                break
        return merged.merged()

    at_once = run([0, len(tokens)])
    assert run(sorted({0, len(tokens), *(c % (len(tokens) + 1) for c in cuts)})) == at_once or not tokens
    assert len(at_once.logprobs or []) == len(at_once.token_ids)
    if is_finished and at_once.stop_reason is None:
        assert at_once.text == text


def test_the_last_token_of_a_finished_grammar_is_text(tokenizer: Tokenizer) -> None:
    output = processor(tokenizer).process(delta("yes", "stop", ends_in_text=True))
    assert (output.text, output.finish_reason, output.stop_reason) == ("yes", "stop", None)
    assert processor(tokenizer, stop=("zz",)).process(delta("yes", "stop", ends_in_text=True)).text == "yes"


@pytest.mark.parametrize("is_shown", [False, True])
@pytest.mark.parametrize(
    ("stop", "text"),
    [("<|start|>", "ab"), ("<|start|>c", "ab"), ("b<|start|>", "a"), ("<|start|><|end|>", "abc")],
)
def test_a_special_token_may_be_in_a_stop_string(tokenizer: Tokenizer, stop: str, text: str, is_shown: bool) -> None:
    writer = processor(tokenizer, stop=(stop,), skip_special_tokens=not is_shown)
    tokens = [*b"ab", MESSAGE_START, *b"c", MESSAGE_START, MESSAGE_END, *b"d"]
    output = writer.process(delta(tokens))
    wanted = text if not is_shown or "c" not in text else "ab<|start|>c"
    assert (output.text, output.finish_reason, output.stop_reason) == (wanted, "stop", stop)
    assert writer.needs_abort


def test_other_special_tokens_stay_out_of_the_text(tokenizer: Tokenizer) -> None:
    writer = processor(tokenizer, stop=("<|start|>x", "zz"))
    output = writer.process(delta([*b"a", MESSAGE_START, *b"b", MESSAGE_END, *b"z", END_OF_TEXT], "stop"))
    assert (output.text, output.stop_reason) == ("abz", None)
    ordinary = processor(tokenizer, stop=("zz",))
    assert ordinary.process(delta([*b"z", MESSAGE_START, *b"z"])).stop_reason == "zz"


def test_a_special_token_that_stops_can_stay_in_the_text(tokenizer: Tokenizer) -> None:
    writer = processor(tokenizer, stop=("<|start|>",), include_stop_str_in_output=True, min_tokens=3)
    output = writer.process(delta([*b"a", MESSAGE_START, *b"b", MESSAGE_START, *b"c"]))
    assert (output.text, output.token_ids) == ("ab<|start|>", [*b"a", MESSAGE_START, *b"b", MESSAGE_START])
