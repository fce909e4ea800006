"""What models write in each format, read whole and cut at every place."""

import json
from typing import Any

import pytest

from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.pieces import Piece, ToolCallArguments, ToolCallStart
from orcinus.server.reading.thought_tags import TAGS
from orcinus.server.reading.tools.families import FAMILIES, find_family
from orcinus.server.reading.tools.formats import FORMAT_NAMES, FORMATS, named_format
from tests.unit.server.reading.tools.calling import (
    call,
    content,
    detect,
    function,
    read,
    read_all,
    read_parts,
    reasoning,
    tool_use,
)
from tests.unit.server.reading.tools.writing import EVERY, WHOLE_ANSWERS, as_json

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "s": {"type": "string"},
        "i": {"type": "integer"},
        "x": {"type": "number"},
        "b": {"type": "boolean"},
        "o": {"type": "object"},
        "l": {"type": "array"},
    },
}
USE = tool_use([function("find", SCHEMA), function("get-time")])
CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "one": [("find", {"s": "Paris"})],
    "two": [("find", {"s": "Paris", "i": 3}), ("find", {"i": -4, "x": 1.5, "b": True})],
    "three": [("get-time", {}), ("find", {"b": False}), ("get-time", {})],
    "empty": [("get-time", {})],
    "nested": [("find", {"o": {"a": [1, {"b": None, "c": "d"}], "e": {}}, "l": [[], [True, "f"]], "s": ""})],
    "quotes": [("find", {"s": """it's "so", he said: \\'no\\' \\"yes\\" `maybe`""", "o": {"a": '"', "b": "'"}})],
    "newlines": [("find", {"s": "one\n\n\ttwo\r\nthree \\n four", "l": ["a\nb"]})],
    "unicode": [("find", {"s": "Zürich 東京 😀 \u2028 \x7f", "o": {"ключ": "значение"}})],
    "tags": [("find", {"s": "<b>x</b> [y] {z} (w) <|e|> ``` >>> , : </ <", "o": {"a": "</b>"}})],
}
every_format = pytest.mark.parametrize("name", EVERY)
every_case = pytest.mark.parametrize("case", CASES)


def written(name: str, case: str) -> str:
    return EVERY[name][1]([(called, as_json(arguments)) for called, arguments in CASES[case]])


def places(case: str, text: str) -> list[int]:
    """Return 0 and every third place of a text, from another one on in each case: markup is cut anywhere by some."""
    return [0, *range(1 + [*CASES].index(case) % 3, len(text), 3)]


def calls_in(pieces: list[Piece]) -> list[tuple[str, dict[str, Any]]]:
    names = [piece.name for piece in pieces if isinstance(piece, ToolCallStart)]
    arguments = [json.loads(piece.text) for piece in pieces if isinstance(piece, ToolCallArguments)]
    return list(zip(names, arguments, strict=True))


def format_of(name: str, thoughts: str | None = None) -> MessageFormat:
    template = EVERY[name][0]
    return detect(template, reasoning_parser=thoughts or ("openai" if name == "openai" else "none"))


def expected(name: str, case: str) -> list[tuple[str, dict[str, Any]]]:
    return CASES[case] if FORMATS[name.partition(",")[0]].is_parallel else CASES[case][:1]


def test_there_is_a_template_and_a_text_of_every_format() -> None:
    assert {name.partition(",")[0] for name in EVERY} == set(FORMAT_NAMES)
    assert {family.name for family in FAMILIES} >= set(FORMAT_NAMES)
    for name, (template, _) in EVERY.items():
        assert find_family(template) == name.partition(",")[0]


@every_format
@every_case
def test_calls_are_read_wherever_their_text_is_cut(name: str, case: str) -> None:
    form, text = format_of(name), written(name, case)
    pieces = read_all(form, [text], use=USE)
    calls = calls_in(pieces)
    if name == "openai":  # a call ends the output, and what follows is read all the same
        assert calls[:1] == expected(name, case)
    else:
        assert calls == expected(name, case)
    assert all(isinstance(piece, ToolCallStart | ToolCallArguments) for piece in pieces)
    for parts in (text, *([text[:place], text[place:]] for place in places(case, text)[1:])):
        assert read_all(form, parts, use=USE) == pieces


@every_format
def test_a_call_may_follow_text(name: str) -> None:
    before = {
        "functionary_v32": "all\nLet me see.>>>",
        "openai": "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant",
    }.get(name, "Let me see.\n\n")
    text = before + written(name, "one")
    if name in WHOLE_ANSWERS:
        assert read(EVERY[name][0], text, use=USE) == content(text)
    else:
        assert read(EVERY[name][0], text, use=USE) == [*content("Let me see."), *call(0, "find", '{"s": "Paris"}')]


@every_format
def test_a_call_may_follow_a_thought(name: str) -> None:
    if name == "openai":
        text = "<|channel|>analysis<|message|>I see.<|end|><|start|>assistant" + written(name, "one")
        form = format_of(name)
    else:
        tags = TAGS[name] if name in TAGS else TAGS["think"]
        text = f"{tags.opening}\nI see.\n{tags.closing}\n\n{written(name, 'one')}"
        form = format_of(name, tags.name)
    for place in range(len(text)):
        pieces = read_all(form, [text[:place], text[place:]], use=USE)
        assert pieces == [*reasoning("I see."), *call(0, "find", '{"s": "Paris"}')]


@every_format
@every_case
def test_a_text_that_is_cut_in_a_call_shows_what_was_said_of_it(name: str, case: str) -> None:
    form, text = format_of(name), written(name, case)
    whole = [piece for piece in read_all(form, [text], use=USE) if isinstance(piece, ToolCallArguments)]
    for length in places(case, text):
        pieces = read_all(form, [text[:length]], use=USE, is_cut=True)
        assert all(isinstance(piece, ToolCallStart | ToolCallArguments) for piece in pieces), text[:length]
        given = [piece for piece in pieces if isinstance(piece, ToolCallArguments)]
        assert all(part.text == all_of.text for part, all_of in zip(given[:-1], whole, strict=False))
        assert all(whole[part.index].text.startswith(part.text) for part in given), text[:length]


@every_format
def test_a_string_is_handed_on_as_it_comes(name: str) -> None:
    said = "the first words of a long string"
    before, _, after = EVERY[name][1]([("find", as_json({"s": f"{said} and more"}))]).partition(" and more")
    first, second, rest = read_parts(format_of(name), [before, " and more"], use=USE, is_cut=True)
    assert "".join(piece.text for piece in first if isinstance(piece, ToolCallArguments)) == f'{{"s": "{said}'
    assert second == [ToolCallArguments(0, " and more")]
    assert rest == []
    assert calls_in(read_all(format_of(name), [before, " and more", after], use=USE)) == [
        ("find", {"s": f"{said} and more"})
    ]


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_the_sample_of_a_format_is_a_call(name: str) -> None:
    form = MessageFormat(named_format(name, ""), None, "", False, frozenset(), lambda text: None)
    pieces = read_all(form, [FORMATS[name].sample()], use=tool_use([function("f", {"properties": {"x": {}}})]))
    assert set(map(str, calls_in(pieces))) == {str(("f", {"x": 1}))}
