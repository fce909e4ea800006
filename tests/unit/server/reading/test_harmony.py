"""What gpt-oss writes into its channels, and the pieces that come of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.server.reading.pieces import Piece
from tests.growth import assert_linear
from tests.unit.server.reading.tools.calling import (
    call,
    content,
    cut,
    detect,
    read,
    read_all,
    reasoning,
    tool_use,
)
from tests.unit.server.reading.tools.family_templates import GPT_OSS

TAIL = "<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>Hm.\n<|end|>"
NEXT = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>Yes."
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>'
EARLY_RECIPIENT = ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>'
WEATHER = call(0, "get_weather", '{"city": "Paris"}')
SPECIAL = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (FINAL, content("Yes.")),
        (FINAL + "<|return|>", content("Yes.")),
        (THOUGHT + NEXT + FINAL, [*reasoning("Hm.\n"), *content("Yes.")]),
        (THOUGHT + NEXT + THOUGHT + NEXT + FINAL, [*reasoning("Hm.\n\nHm.\n"), *content("Yes.")]),
        (THOUGHT + NEXT + CALL, [*reasoning("Hm.\n"), *WEATHER]),
        (THOUGHT + NEXT + EARLY_RECIPIENT, [*reasoning("Hm.\n"), *WEATHER]),
        (EARLY_RECIPIENT, WEATHER),
        (CALL.removesuffix("<|call|>"), WEATHER),
        (CALL + NEXT + CALL, [*WEATHER, *call(1, "get_weather", '{"city": "Paris"}')]),
        (
            f"<|channel|>commentary<|message|>Let me see.<|end|>{NEXT}{CALL}",
            [*content("Let me see."), *WEATHER],
        ),
        (CALL.replace("}<|call|>", "}}\n<|call|>"), WEATHER),
        (CALL.replace("Paris", "Pa\nris"), call(0, "get_weather", '{"city": "Pa\\nris"}')),
        (CALL.replace('{"city": "Paris"}', ""), call(0, "get_weather", "{}")),
        ("<|channel|>analysis to=python code<|message|>print(1)<|call|>", call(0, "python", "print(1)")),
        ("<|channel|>analysis<|message|>Hm.", reasoning("Hm.")),
        (f"<|channel|>analysis<|message|>Hm.{FINAL}", [*reasoning("Hm."), *content("Yes.")]),
        ("Hello <b>.", content("Hello <b>.")),
        ('{"answer": 1}', content('{"answer": 1}')),
        ("<|channel|>final<|message|>a < b <| c", content("a < b <| c")),
        ("", []),
    ],
)
def test_channels(text: str, pieces: list[Piece]) -> None:
    assert read(GPT_OSS, text, tail=TAIL) == pieces
    form = detect(GPT_OSS, special_tokens=SPECIAL)
    assert form.needs_special_tokens
    assert read_all(form, text, tail=TAIL, use=tool_use()) == pieces


@pytest.mark.parametrize(
    ("tail", "text", "pieces"),
    [
        ("<|start|>assistant<|channel|>analysis<|message|>", "Hm.<|end|>" + NEXT + FINAL, [*reasoning("Hm.")]),
        ("<|start|>assistant<|channel|>final<|message|>It", " is.", []),
        ("<|start|>assistant<|channel|>", "analysis<|message|>Hm.<|end|>" + NEXT + FINAL, [*reasoning("Hm.")]),
    ],
)
def test_the_prompt_may_have_begun_the_message(tail: str, text: str, pieces: list[Piece]) -> None:
    answer = content(" is." if "It" in tail else "Yes.")
    assert read(GPT_OSS, text, tail=tail) == [*pieces, *answer]


def test_a_call_is_content_where_there_are_no_tools_to_use() -> None:
    form = detect(GPT_OSS)
    assert read_all(form, [THOUGHT + NEXT + CALL], tail=TAIL) == [*reasoning("Hm.\n"), *content('{"city": "Paris"}')]


def test_thoughts_are_content_where_the_reasoning_is_not_wanted() -> None:
    form = detect(GPT_OSS, reasoning_parser="none")
    assert read_all(form, [THOUGHT + NEXT + FINAL], tail=TAIL) == content("Hm.\nYes.")


def test_only_the_first_call_comes_where_parallel_calls_are_not_wanted() -> None:
    assert read(GPT_OSS, CALL + NEXT + CALL, tail=TAIL, use=tool_use(parallel=False)) == WEATHER


def test_other_special_tokens_never_reach_the_content() -> None:
    form = detect(GPT_OSS, special_tokens=[*SPECIAL, "<|endoftext|>"])
    assert read_all(form, [FINAL + "<|endoftext|>"], tail=TAIL) == content("Yes.")


@pytest.mark.parametrize(
    "header",
    [
        "functions.f to=assistant<|channel|>commentary",
        "assistant<|channel|>commentary to=assistant",
        "user to=functions.f<|channel|>commentary",
    ],
)
def test_what_others_say_is_no_call(header: str) -> None:
    text = f'{FINAL}<|end|><|start|>{header}<|message|>{{"r":1}}<|end|>'
    assert read(GPT_OSS, text, tail=TAIL) == content('Yes.{"r":1}')


@pytest.mark.parametrize("role", ["assistant to=", "assistant<|channel|>commentary to=", " to="])
def test_what_the_assistant_says_to_a_tool_is_a_call(role: str) -> None:
    text = f'{FINAL}<|end|><|start|>{role}functions.f<|message|>{{"r":1}}<|call|>'
    assert read(GPT_OSS, text, tail=TAIL) == [*content("Yes."), *call(0, "f", '{"r":1}')]


def test_a_limit_may_cut_a_call_in_the_midst_of_a_marker() -> None:
    text, form = CALL.partition("}")[0], detect(GPT_OSS)
    for length in range(len(text)):
        for beginning in ("<", "<|", "<|end|"):
            whole = read_all(form, [text[:length] + beginning], tail=TAIL, use=tool_use(), is_cut=True)
            assert read_all(form, [text[:length], beginning], tail=TAIL, use=tool_use(), is_cut=True) == whole


@pytest.mark.parametrize("text", [CALL, EARLY_RECIPIENT])
def test_what_a_limit_cuts_before_the_name_is_known_is_no_text(text: str) -> None:
    for length in range(text.index("<|message|>") + len("<|message|>")):
        assert read_all(detect(GPT_OSS), [text[:length]], tail=TAIL, use=tool_use(), is_cut=True) == []


_PARTS = [*SPECIAL, "assistant", "analysis", "final", " to=functions.f", '{"a": 1}', "Hm.", "\n", " ", "<|", "to"]


@given(text=st.lists(st.sampled_from(_PARTS), max_size=15).map("".join), places=st.lists(st.integers(0), max_size=6))
def test_where_a_text_is_cut_does_not_matter(text: str, places: list[int]) -> None:
    form = detect(GPT_OSS)
    for use in (tool_use(), None):
        whole = read_all(form, [text], tail=TAIL, use=use)
        assert read_all(form, cut(text, places), tail=TAIL, use=use) == whole
        assert read_all(form, text, tail=TAIL, use=use) == whole


@given(
    thought=st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])),
    arguments=st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3),
)
def test_thoughts_and_calls_are_read_as_they_were_written(thought: str, arguments: dict[str, Any]) -> None:
    written = json.dumps(arguments)
    made = CALL.replace('{"city": "Paris"}', written)
    text = f"<|channel|>analysis<|message|>{thought}<|end|>{NEXT}{made}"
    pieces = [*(reasoning(thought) if thought else []), *call(0, "get_weather", written)]
    assert read_all(detect(GPT_OSS), text, tail=TAIL, use=tool_use()) == pieces


@pytest.mark.slow
@pytest.mark.parametrize("unit", [THOUGHT + NEXT, CALL + NEXT, "<|channel|>a", "<|message|>", "a <| b ", "to=f "])
def test_reading_costs_the_same_for_every_character(unit: str) -> None:
    form = detect(GPT_OSS)

    def read_long(length: int) -> None:
        text = unit * (length // len(unit))
        read_all(form, text, tail=TAIL, use=tool_use())
        read_all(form, [text], tail=TAIL, use=tool_use())

    assert_linear(read_long, 100_000)
