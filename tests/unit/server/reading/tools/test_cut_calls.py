"""Calls in every format, cut by a limit anywhere: what is shown is what the model said, and never markup."""

from typing import Any

import pytest

from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.message_reader import join_pieces
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallStart
from orcinus.server.reading.thought_tags import TAGS
from orcinus.server.reading.tools.formats import FORMAT_NAMES, named_format
from tests.unit.server.reading.tools.calling import call, content, function, read_all, reasoning, tool_use
from tests.unit.server.reading.tools.writing import PUBLISHERS

F = function("f", {"type": "object", "properties": {"s": {"type": "string"}, "t": {"type": "integer"}}})
USE = tool_use([F])
TWO_CALLS: dict[str, str] = {
    "hermes": (
        '<tool_call>\n{"name": "f", "arguments": {"s": "x y", "t": 3}}\n</tool_ca'
        'll>\n<tool_call>\n{"name": "f", "arguments": {"s": "x y", "t": 3}}\n</too'
        "l_call>"
    ),
    "llama3_json": (
        '<|python_tag|>{"name": "f", "parameters": {"s": "x y", "t": 3}}; {"name": "f", "parameters": {"s": "x"}}'
    ),
    "mistral": (
        '[TOOL_CALLS] [{"name": "f", "arguments": {"s": "x y", "t": 3}}, {"name": "f", "arguments": {"s": "x y"}}]'
    ),
    "mistral, names first": ('[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"s": "x y", "t": 3}[TOOL_CALLS]f[ARGS]{"s": "x"}'),
    "openai": (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>co"
        'mmentary to=functions.f <|constrain|>json<|message|>{"s": "x y"}<|call'
        "|>"
    ),
    "pythonic": '<|python_start|>[f(s="x y", t=3), f(s="x")]<|python_end|>',
    "functionary_v32": 'f\n{"s": "x y", "t": 3}>>>f\n{"s": "x"}',
    "xlam": '[{"name": "f", "arguments": {"s": "x y"}}, {"name": "f", "arguments": {"s": "x"}}]',
    **{name: write([("f", '{"s": "x y", "t": 3}'), ("f", "{}")]) for name, (_, write) in PUBLISHERS.items()},
}

WHOLE_ANSWERS = (
    "functionary_v32",
    "pythonic",
    "xlam",
    "openai",
)  # nothing is said before the calls, or elsewhere than in a channel
BEFORE = [("", "", None), ("Hi. ", "", None), ("<think>a</think>", "", "think"), ("a </think>", "<think>", "think")]


def format_of(tools: str | None, thoughts: str | None = None, *, opens: bool = False) -> MessageFormat:
    return MessageFormat(
        tool_format=None if tools is None else named_format(tools.partition(",")[0], ""),
        reasoning=thoughts,
        why_no_tools="",
        template_opens_thoughts=opens,
        special_tokens=frozenset(),
        added_token_id=lambda text: None,
    )


def said(pieces: list[Piece]) -> tuple[str, str]:
    thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    return thoughts.strip(), "".join(piece.text for piece in pieces if isinstance(piece, Content)).strip()


def test_there_is_a_text_in_every_format() -> None:
    assert {name.partition(",")[0] for name in TWO_CALLS} == set(FORMAT_NAMES)
    for name, text in TWO_CALLS.items():
        pieces = read_all(format_of(name), [text], use=USE)
        assert sum(isinstance(piece, ToolCallStart) for piece in pieces) == (1 if name == "openai" else 2), name


@pytest.mark.parametrize("name", TWO_CALLS)
@pytest.mark.parametrize(("before", "tail", "thoughts"), BEFORE)
def test_no_markup_is_shown_wherever_a_limit_cuts(name: str, before: str, tail: str, thoughts: str | None) -> None:
    if name in WHOLE_ANSWERS and (before or thoughts):
        pytest.skip("there is nothing before the calls in this format")
    form = format_of(name, "openai" if name == "openai" else thoughts)
    whole = ("hm", "") if name == "openai" else said(read_all(form, [before], tail=tail, use=USE))
    # Every other place of the calls, and what comes before them decides which.
    for length in range(0 if tail or not before else 1, len(TWO_CALLS[name]) + 1, 2):
        text = before + TWO_CALLS[name][:length]
        for parts in ([text], text):
            found = said(read_all(form, parts, tail=tail, use=USE, is_cut=True))
            assert found in (whole, (whole[0], ""), ("", ""), ("h", "")), text


def test_a_second_call_that_was_cut_is_no_text_and_other_text_is() -> None:
    first = '<|tool_call|>[{"name": "f", "arguments": {}}, '
    for rest in ("{", '{"na', '{"name": "f"', '{"name": "f", "arguments": '):
        assert read_all(format_of("granite"), [first + rest], use=USE, is_cut=True) == call(0, "f", "{}")
    for rest in ("{1} is", "{set}"):
        said_after = [*call(0, "f", "{}"), *content(rest)]
        assert read_all(format_of("granite"), [first + rest], use=USE, is_cut=True) == said_after


@pytest.mark.parametrize("thoughts", TAGS)
@pytest.mark.parametrize("tools", [None, "hermes", "llama3_json"])
@pytest.mark.parametrize("opens", [True, False])
def test_tags_of_thoughts_and_answers_are_never_shown_either(thoughts: str, tools: str | None, opens: bool) -> None:
    tags = TAGS[thoughts]
    answer = tags.answer or ("", "")
    tail = tags.opening if opens else ""
    text = f"{'' if opens else tags.opening}\na\n{tags.closing}\n\n{answer[0]}\nHi.\n{answer[1]}"
    for length in range(len(text) + 1):
        reader = format_of(tools, thoughts, opens=opens).reader(tail, USE if tools else None)
        assert reader is not None
        found = said(join_pieces(reader.feed(text[:length]) + reader.finish(is_cut=True)))
        assert found[0] in ("", "a"), text[:length]
        assert "Hi.".startswith(found[1]), text[:length]


CALL = '<|python_tag|>{"name": "f", "parameters": {}}'
IN_A_THOUGHT: list[tuple[str, list[Piece]]] = [
    ("a <|python_tag|>b</think>Hi.", [*reasoning("a b"), *content("Hi.")]),
    ("a <|python_tag|>b", reasoning("a b")),
    ("a <|python_tag|>", reasoning("a ")),
    ("a <|python_tag|><|python_tag|>b", reasoning("a b")),
    (f"a <|python_tag|>b {CALL}", [*reasoning("a b "), *call(0, "f", "{}")]),
    (f"a <|python_tag|>{CALL}", [*reasoning("a "), *call(0, "f", "{}")]),
    (f"a {CALL}</think><|python_tag|>Hi.", [*reasoning(f"a {CALL.removeprefix('<|python_tag|>')}"), *content("Hi.")]),
]


@pytest.mark.parametrize(("text", "pieces"), IN_A_THOUGHT)
@pytest.mark.parametrize("is_cut", [True, False])
def test_llamas_tag_is_no_part_of_a_thought(text: str, pieces: list[Piece], is_cut: bool) -> None:
    form = format_of("llama3_json", "think")
    for parts in ([text], text):
        assert read_all(form, parts, tail="<think>", use=USE, is_cut=is_cut) == pieces


def test_what_begins_a_call_in_other_formats_is_what_the_thought_says() -> None:
    form: Any = format_of("hermes", "think")
    text = "a <tool_call> is a tag"
    assert read_all(form, [text], tail="<think>", use=USE) == reasoning(text)
