"""Where a model's thinking ends and its answer begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.server.reading.reasoning import Start, split_reasoning, start_of_output


def split(start: Start, *parts: str) -> tuple[str, str]:
    reasoning: list[str] = []
    answer: list[str] = []
    reader = split_reasoning(start, reasoning.append, answer.append)
    for part in parts:
        reader.feed(part)
    reader.end()
    assert "" not in reasoning
    assert "" not in answer
    return "".join(reasoning), "".join(answer)


@pytest.mark.parametrize(
    ("prompt_tail", "start"),
    [
        ("<|im_start|>assistant\n<think>\n", "open"),
        ("<｜Assistant｜><think>", "open"),
        ("<|im_start|>assistant\n", "undecided"),
        ("what does <think> mean?<|im_end|>\n<|im_start|>assistant\n", "undecided"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "over"),
        ("<｜Assistant｜></think>", "over"),
        ("", "undecided"),
    ],
)
def test_the_prompt_says_how_the_output_begins(prompt_tail: str, start: Start) -> None:
    assert start_of_output(prompt_tail) == start


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nI see.\n</think>\n\nYes.", "I see.", "Yes."),
        ("\n <think>I\n\nsee.</think>Yes.\n", "I\n\nsee.", "Yes.\n"),
        ("<think>\n\n</think>\n\n  Yes.", "", "  Yes."),
        ("<think>a </thin <think> b</think>c</think>", "a </thin <think> b", "c</think>"),
        ("<think>never ended\n", "never ended\n", ""),
        ("<think>never ended </thi", "never ended </thi", ""),
        ("<think>", "", ""),
        ("Yes. <think>no</think>", "", "Yes. <think>no</think>"),
        ("\n\nYes.", "", "\n\nYes."),
        ("<thin", "", "<thin"),
        (" \n", "", " \n"),
        ("", "", ""),
    ],
)
def test_the_output_may_begin_with_thinking(text: str, reasoning: str, answer: str) -> None:
    assert split("undecided", text) == (reasoning, answer)
    assert split("undecided", *text) == (reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("I see.\n</think>\n\nYes.", "I see.", "Yes."),
        ("\n  I see.</think>Yes.", "  I see.", "Yes."),
        ("<think>\nI see.\n</think>\nYes.", "I see.", "Yes."),
        ("</think>Yes.", "", "Yes."),
        ("never ended", "never ended", ""),
        ("", "", ""),
    ],
)
def test_the_prompt_may_have_opened_the_thinking(text: str, reasoning: str, answer: str) -> None:
    assert split("open", text) == (reasoning, answer)
    assert split("open", *text) == (reasoning, answer)


def test_an_answer_after_thinking_that_is_over_is_left_alone() -> None:
    assert split("over", "\n<think>no</think>") == ("", "\n<think>no</think>")


@given(
    parts=st.lists(
        st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", "\n", " ", "a", "é", ">"]), max_size=20
    ),
    start=st.sampled_from(["open", "undecided", "over"]),
)
def test_where_a_thought_is_cut_does_not_matter(parts: list[str], start: Start) -> None:
    assert split(start, *parts) == split(start, "".join(parts))
