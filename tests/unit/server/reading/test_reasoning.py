"""Where a model's thinking ends and its answer begins."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.server.reading.reasoning import Start, split_reasoning, start_of_output
from orcinus.server.reading.thought_tags import TAGS
from tests.growth import assert_linear


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
        ("<think>a </thin <think> b</think>c</think>", "a </thin <think> b", "c"),
        ("<think>a</think></think>b", "a", "b"),
        ("<think>a</think>\n\n</think> \n</think>\nb", "a", "b"),
        ("<think>a<think>b</think></think>d</think>", "a<think>b", "d</think>"),
        ("<think>a<think>b</think>c</think>d</think>", "a<think>b", "cd</think>"),
        ("<think>a<think>b</think>`<think>c</think>`</think>d", "a<think>b", "`<think>c</think>`d"),
        ("<think>a</think>Write `</think>`.", "a", "Write `</think>`."),
        ("<think>a<think>", "a<think>", ""),
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
        ("I see.</think>\n</think>\n\nYes.", "I see.", "Yes."),
        ("never ended", "never ended", ""),
        ("", "", ""),
    ],
)
def test_the_prompt_may_have_opened_the_thinking(text: str, reasoning: str, answer: str) -> None:
    assert split("open", text) == (reasoning, answer)
    assert split("open", *text) == (reasoning, answer)


def test_an_answer_after_thinking_that_is_over_is_left_alone() -> None:
    assert split("over", "\n<think>no</think>") == ("", "\n<think>no</think>")


def split_by(
    name: str,
    text: str,
    start: Start = "undecided",
    *,
    waits: bool = False,
    call_markers: tuple[str, ...] = (),
    is_cut: bool = False,
) -> tuple[str, str]:
    """Return the thought and the answer, which are the same at once, by characters, and cut anywhere in two."""

    def split_parts(parts: Iterable[str]) -> tuple[str, str]:
        reasoning: list[str] = []
        answer: list[str] = []
        reader = split_reasoning(
            start,
            reasoning.append,
            answer.append,
            TAGS[name],
            waits=waits,
            call_markers=call_markers,
            is_call=lambda call, is_cut: call.startswith("<call>f"),
        )
        for part in parts:
            reader.feed(part)
        reader.end(is_cut=is_cut)
        return "".join(reasoning), "".join(answer)

    found = split_parts([text])
    assert split_parts(text) == found
    for place in range(len(text)):
        assert split_parts([text[:place], text[place:]]) == found
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("think", "<think>\nI see.\n</think>\n\nYes."),
        ("mistral", "[THINK]I see.[/THINK]Yes."),
        ("seed_oss", "<seed:think>\nI see.</seed:think>\nYes."),
        ("gemma4", "<|channel>thought\nI see.\n<channel|>Yes."),
        ("cohere_command", "<|START_THINKING|>I see.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>"),
        ("cohere_command", "<|START_THINKING|>I see.<|END_THINKING|>Yes."),
        ("cohere_command4", "<|START_THINKING|>I see.<|END_THINKING|><|START_TEXT|>Yes.<|END_TEXT|>"),
        ("longcat", "<longcat_think>\nI see.\n</longcat_think>\nYes."),
        ("granite", "<think>I see.</think>\n<response>Yes.</response>"),
        ("hunyuan", "<think>\nI see.\n</think>\n<answer>\nYes.\n</answer>\n"),
        ("hunyuan", "<think>\nI see.\n</think>\nYes."),
        ("apertus", "<|inner_prefix|>I see.<|inner_suffix|>Yes."),
    ],
)
def test_each_family_has_tags_of_its_own(name: str, text: str) -> None:
    assert split_by(name, text) == ("I see.", "Yes.")
    opened = text.removeprefix(TAGS[name].opening)
    assert split_by(name, opened, "open") == ("I see.", "Yes.")


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("hunyuan", "<think>\n\n</think>\n"),
        ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>"),
        ("cohere_command", "<|START_THINKING|><|END_THINKING|>"),
        ("cohere_command", "<|CHATBOT_TOKEN|><|START_RESPONSE|>"),
    ],
)
def test_the_prompt_may_have_ended_the_thinking_of_any_family(name: str, tail: str) -> None:
    assert start_of_output(tail, TAGS[name]) == "over"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>\nYes.\n</answer>", "Yes."),
        (" \nYes.\n", " \nYes.\n"),
        ("Yes.\n</answer>", "Yes."),
        ("<ans", "<ans"),
        ("<answer>\n", ""),
    ],
)
def test_the_tags_around_an_answer_are_left_out_where_no_thought_came(text: str, answer: str) -> None:
    assert split_by("hunyuan", text, "over") == ("", answer)


@pytest.mark.parametrize("name", sorted(TAGS))
@pytest.mark.parametrize("thought", ["I see.", "\nI see.\n", " I\n\nsee. \n\n"])
def test_a_thought_that_is_ended_and_was_never_opened_is_one(name: str, thought: str) -> None:
    text = f"{thought}{TAGS[name].closing}\n\nYes."
    assert split_by(name, text, waits=True) == (thought.strip("\n"), "Yes.")


def test_what_cannot_wait_for_the_end_of_a_thought_leaves_its_tag_out() -> None:
    assert split_by("think", "I see.\n</think>\n\nYes.") == ("", "I see.\nYes.")
    assert split("undecided", "I ", "see") == ("", "I see")


@pytest.mark.parametrize(
    "text", ["\n\nYes.", "Yes. <think>no</think>", "Yes.\n<call>f</think></call>", "<thin", " ", "", "a </th"]
)
@pytest.mark.parametrize("waits", [True, False])
def test_an_answer_that_ends_no_thought_comes_out_unharmed(text: str, waits: bool) -> None:
    assert split_by("think", text, waits=waits, call_markers=("<call>",)) == ("", text)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>I call\n<call>f</call>", "I call", "<call>f</call>"),
        ("<think>\n<call>f</call>\n<call>g</call>", "", "<call>f</call>\n<call>g</call>"),
        ("<think>a <call> is b\n<call>f</call>", "a <call> is b", "<call>f</call>"),
        ("<think>a <call>f</call>\n</think>\nb", "a <call>f</call>", "b"),
        ("<think>a <call>f</call> <call>g</think>b", "a <call>f</call> <call>g", "b"),
        ("<think>a <call> is b\n", "a <call> is b\n", ""),
        ("<think>a <call", "a <call", ""),
    ],
)
def test_a_call_in_a_thought_is_one_where_the_thought_is_never_ended(text: str, reasoning: str, answer: str) -> None:
    assert split_by("think", text, call_markers=("<call>",)) == (reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>a<think><call>f(</think>)</call></think>b", "a<think><call>f(", ")</call>b"),
        ("<think>a <call>b<think>c</think>d</think>e", "a <call>b<think>c", "de"),
        ("<think>a<think>b</think>c<call>f</think></call>", "a<think>b", "c<call>f</think></call>"),
    ],
)
def test_the_second_end_of_a_thought_is_left_out_of_all_but_calls(text: str, reasoning: str, answer: str) -> None:
    assert split_by("think", text, call_markers=("<call>",)) == (reasoning, answer)


@pytest.mark.parametrize("name", sorted(TAGS))
@pytest.mark.parametrize("waits", [True, False])
def test_a_thought_of_any_family_may_be_ended_twice(name: str, waits: bool) -> None:
    opening, closing = TAGS[name].opening, TAGS[name].closing
    assert split_by(name, f"{opening}I see.{closing}{closing}\nYes.", waits=waits) == ("I see.", "Yes.")
    assert split_by(name, f"I see.{closing}\n{closing}Yes.", "open", waits=waits) == ("I see.", "Yes.")


def test_the_beginning_of_a_tag_where_the_text_was_cut_is_left_out() -> None:
    assert split_by("think", "<think>a</thi", is_cut=True) == ("a", "")
    assert split_by("think", "a</thi", is_cut=True) == ("", "a")


_PARTS = ["<think>", "</think>", "<th", "ink>", "</", "\n", " ", "a", "é", ">", "<call>", "f", "<answer>", "</answer>"]


@given(
    parts=st.lists(st.sampled_from(_PARTS), max_size=20),
    start=st.sampled_from(["open", "undecided", "over"]),
    name=st.sampled_from(["think", "hunyuan"]),
    waits=st.booleans(),
    is_cut=st.booleans(),
)
def test_where_a_thought_is_cut_does_not_matter(
    parts: list[str], start: Start, name: str, waits: bool, is_cut: bool
) -> None:
    assert split(start, *parts) == split(start, "".join(parts))
    split_by(name, "".join(parts), start, waits=waits, call_markers=("<call>",), is_cut=is_cut)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["a <call> f ", "<call>f\n", "\n", "</thin", "a\n"])
def test_splitting_costs_the_same_for_every_character(unit: str) -> None:
    def split_long(length: int) -> None:
        text = unit * (length // len(unit))
        for whole in ("<think>" + text, text, "<think></think><answer>" + text):
            for parts in (whole, [whole]):
                reader = split_reasoning(
                    "undecided",
                    lambda _: None,
                    lambda _: None,
                    TAGS["hunyuan"],
                    waits=True,
                    call_markers=("<call>",),
                    is_call=lambda call, is_cut: False,
                )
                for part in parts:
                    reader.feed(part)
                reader.end()

    assert_linear(split_long, 100_000)
