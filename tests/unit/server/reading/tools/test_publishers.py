"""Calls in each publisher's format: read wherever the text is cut, and enforced."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher

from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.reading.tools.call_writer import openai_call_id
from tests.growth import assert_linear
from tests.unit.server.reading.tools import family_templates
from tests.unit.server.reading.tools.calling import (
    call,
    content,
    cut,
    detect,
    function,
    read,
    read_all,
    tool_use,
)
from tests.unit.server.reading.tools.test_grammars import accepts, matching_tokenizer
from tests.unit.server.reading.tools.writing import PUBLISHERS, TAGGED

ANY: dict[str, Any] = {
    "properties": {
        "s": {"type": "string"},
        "n": {"type": ["string", "null"]},
        "i": {"type": "integer"},
        "o": {"type": "object"},
        "e": {"enum": ["C", "F"]},
        "x": {},
    }
}
TOOLS = [function("get_weather", ANY), function("get-time"), function("f", ANY)]
every_publisher = pytest.mark.parametrize("name", sorted(PUBLISHERS))
CITY = ("get_weather", '{"s": "Zü \\"r\\" <b>", "i": 3, "o": {"a": [true, null]}}')
TIME = ("get-time", "{}")


def pieces_of(*calls: tuple[str, str]) -> list[Piece]:
    return [piece for i, (name, arguments) in enumerate(calls) for piece in call(i, name, arguments)]


@every_publisher
def test_only_the_first_call_is_read_where_parallel_calls_are_not_wanted(name: str) -> None:
    template, write = PUBLISHERS[name]
    assert read(template, write([CITY, TIME]), use=tool_use(TOOLS, parallel=False)) == pieces_of(CITY)


@every_publisher
def test_special_tokens_of_a_format_stay_where_they_are_needed(name: str) -> None:
    template, write = PUBLISHERS[name]
    tool_format = detect(template).tool_format
    assert tool_format is not None
    form = detect(template, special_tokens=[*tool_format.markers, "<eos>"])
    assert form.needs_special_tokens
    assert read_all(form, [write([CITY]) + "<eos>"], use=tool_use(TOOLS)) == pieces_of(CITY)


@every_publisher
def test_a_call_that_is_cut_before_its_name_is_known_is_no_text(name: str) -> None:
    template, write = PUBLISHERS[name]
    text = write([CITY])
    for length in range(len(text)):
        pieces = read_all(detect(template), [text[:length]], use=tool_use(TOOLS), is_cut=True)
        assert all(not isinstance(piece, Content) for piece in pieces), text[:length]
        started = [piece.name for piece in pieces if isinstance(piece, ToolCallStart)]
        assert started in ([], ["get_weather"])
        given = "".join(piece.text for piece in pieces if isinstance(piece, ToolCallArguments))
        assert CITY[1].startswith(given), "what was cut off looks complete"


@every_publisher
@pytest.mark.parametrize("junk", ["}", " }\n", "\n"])
def test_junk_after_the_arguments_is_no_content(name: str, junk: str) -> None:
    template, write = PUBLISHERS[name]
    text = write([CITY])
    brackets = '{"a": [true, null]}' + ("" if name in TAGGED else "}")
    if name not in TAGGED:
        text = text.replace(brackets, brackets + junk)
    assert read(template, text, use=tool_use(TOOLS)) == pieces_of(CITY)


@every_publisher
def test_control_characters_in_strings_are_escaped(name: str) -> None:
    template, write = PUBLISHERS[name]
    text = write([("get_weather", '{"s": "Pa#ris"}')]).replace("#", "\n\t\x01")
    _, arguments = read(template, text, use=tool_use(TOOLS))
    assert isinstance(arguments, ToolCallArguments)
    assert json.loads(arguments.text) == {"s": "Pa\n\t\x01ris"}


@every_publisher
def test_a_marker_alone_is_text(name: str) -> None:
    tool_format = detect(PUBLISHERS[name][0]).tool_format
    assert tool_format is not None
    for opening in tool_format.openings:
        for text in (f"a {opening}", f"a {opening} is how", f"a {opening[:-1]}"):
            assert read(PUBLISHERS[name][0], text, use=tool_use(TOOLS)) == content(text)


@pytest.mark.parametrize("name", sorted(PUBLISHERS))
def test_a_call_inside_reasoning_that_is_never_ended_is_a_call(name: str) -> None:
    template, write = PUBLISHERS[name]
    form = detect(template, reasoning_parser="think")
    for parts in ([f"Hm.\n{write([CITY])}"], f"Hm.\n{write([CITY])}"):
        pieces = read_all(form, parts, tail="<think>\n", use=tool_use(TOOLS))
        assert pieces == [Reasoning("Hm."), *pieces_of(CITY)]


@every_publisher
def test_a_limit_may_cut_a_call_in_the_midst_of_a_marker(name: str) -> None:
    template, write = PUBLISHERS[name]
    form, text = detect(template), write([("get_weather", '{"s": "r", "o": [1]}')])
    assert form.tool_format is not None
    use = tool_use(TOOLS)
    beginnings = sorted({marker[:length] for marker in form.tool_format.markers for length in (1, len(marker) - 1)})
    for end in range(len(form.tool_format.openings[0]), len(text)):
        for beginning in beginnings[end % 3 :: 3]:
            whole = read_all(form, [text[:end] + beginning], use=use, is_cut=True)
            assert read_all(form, [text[:end], beginning], use=use, is_cut=True) == whole


@every_publisher
def test_an_opening_written_twice_is_no_content(name: str) -> None:
    template, write = PUBLISHERS[name]
    form = detect(template)
    assert form.tool_format is not None
    opening = form.tool_format.openings[0]
    assert read(template, opening + "\n" + write([CITY]), use=tool_use(TOOLS)) == pieces_of(CITY)
    assert read(template, opening * 2, use=tool_use(TOOLS), is_cut=True) == []


_VALUES = {
    "s": st.text(st.characters(exclude_characters="<\r", exclude_categories=["Cs"])),
    "i": st.integers(),
    "o": st.dictionaries(st.text("abé", max_size=3), st.none() | st.booleans() | st.text('ab{}"\\')),
    "e": st.sampled_from("CF"),
}


@every_publisher
@given(
    calls=st.lists(
        st.tuples(st.sampled_from(["get_weather", "get-time"]), st.fixed_dictionaries({}, optional=_VALUES)), max_size=3
    ),
    places=st.lists(st.integers(0), max_size=8),
)
def test_calls_are_read_as_they_were_written(
    name: str, calls: list[tuple[str, dict[str, Any]]], places: list[int]
) -> None:
    template, write = PUBLISHERS[name]
    tools = tool_use([function("get_weather", ANY), function("get-time", ANY)])
    text = write([(called, json.dumps(arguments, ensure_ascii=False)) for called, arguments in calls]) if calls else ""
    pieces = read_all(detect(template), cut(text, places), use=tools)
    assert pieces == read_all(detect(template), [text], use=tools)
    names = [piece.name for piece in pieces if isinstance(piece, ToolCallStart)]
    arguments = [json.loads(piece.text) for piece in pieces if isinstance(piece, ToolCallArguments)]
    assert list(zip(names, arguments, strict=True)) == calls
    assert not any(isinstance(piece, Content) for piece in pieces)


@every_publisher
@given(data=st.data(), places=st.lists(st.integers(0), max_size=8), is_cut=st.booleans())
def test_where_a_text_is_cut_does_not_matter(name: str, data: st.DataObject, places: list[int], is_cut: bool) -> None:
    template, write = PUBLISHERS[name]
    form = detect(template)
    assert form.tool_format is not None
    whole = write([CITY, TIME])
    bits = [*form.tool_format.markers, "get-time", "{", "}", '"', "s", "\n", " ", "3", ">", "</", "é", whole]
    text = data.draw(st.lists(st.sampled_from(bits), max_size=16).map("".join))
    use = tool_use(TOOLS)
    expected = read_all(form, [text], use=use, is_cut=is_cut)
    assert read_all(form, cut(text, places), use=use, is_cut=is_cut) == expected
    assert read_all(form, text, use=use, is_cut=is_cut) == expected


def test_kimis_ids_are_the_models_own_where_they_differ() -> None:
    template, write = PUBLISHERS["kimi_k2"]
    reader = detect(template).reader("", tool_use(TOOLS))
    assert reader is not None
    text = write([TIME, CITY]) + write([TIME])
    ids = [piece.call_id for piece in reader.feed(text) if isinstance(piece, ToolCallStart)]
    assert ids[:2] == ["functions.get-time:0", "functions.get_weather:1"]
    assert len(ids[2]) == len(openai_call_id())


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("s", "3", "3"),
        ("s", "null", "null"),
        ("s", "", ""),
        ("n", "null", None),
        ("n", "3", "3"),
        ("i", "3", 3),
        ("i", " 3 ", 3),
        ("i", "three", "three"),
        ("o", '{"a": "b\nc",}', {"a": "b\nc"}),
        ("o", "{'a': True}", {"a": True}),
        ("o", "{a}", "{a}"),
        ("e", "C", "C"),
        ("x", "3", 3),
        ("x", "three", "three"),
        ("unknown", "[1, 2]", [1, 2]),
    ],
)
@pytest.mark.parametrize("name", TAGGED)
def test_the_schema_says_what_a_value_without_a_type_is(name: str, key: str, written: str, value: Any) -> None:
    template, write = PUBLISHERS[name]
    text = write([("get_weather", json.dumps({key: "#"}))]).replace("#", written)
    _, arguments = read(template, text, use=tool_use(TOOLS))
    assert isinstance(arguments, ToolCallArguments)
    assert json.loads(arguments.text) == {key: value}


def test_a_string_without_a_type_is_handed_on_as_it_comes() -> None:
    reader = detect(family_templates.QWEN_3_CODER).reader("", tool_use(TOOLS))
    assert reader is not None
    reader.feed("<tool_call>\n<function=get_weather>\n<parameter=s>\nOne")
    assert reader.feed(" two\n") == [ToolCallArguments(0, " two")]
    assert reader.feed("three") == [ToolCallArguments(0, "\\nthree")]


REQUIRED: dict[str, Any] = {
    "properties": {"s": {"type": "string"}, "i": {"type": "integer"}, "e": {"enum": ["C", "F"]}},
    "required": ["s"],
}
FORCED = [function("get_weather", REQUIRED), function("get-time")]


@every_publisher
def test_good_calls_are_allowed_and_others_are_not(name: str) -> None:
    template, write = PUBLISHERS[name]
    use = tool_use(FORCED, "required")
    good = ("get_weather", '{"s": "Rome <b>", "i": 3, "e": "C"}')
    for calls in ([good], [TIME], [("get_weather", '{"s": "Rome"}')], [TIME, good, TIME], [TIME] * 16):
        assert accepts(template, write(calls), use), calls
    wrong = ['{"i": 3}', '{"s": "Rome", "i": "three"}', '{"s": "Rome", "e": "K"}']
    for calls in (*([("get_weather", arguments)] for arguments in wrong), [("unknown", "{}")], [TIME] * 17):
        assert not accepts(template, write(calls), use), calls
    assert not accepts(template, "Hello.", use)
    assert not accepts(template, write([TIME]) + " Hello.", use)
    named = tool_use(FORCED, {"type": "function", "function": {"name": "get-time"}})
    assert accepts(template, write([TIME]), named)
    assert not accepts(template, write([good]), named)
    assert not accepts(template, write([TIME, TIME]), tool_use(FORCED, "required", parallel=False))


def test_deepseeks_token_in_the_midst_of_its_tags_is_one_in_a_grammar() -> None:
    template, write = PUBLISHERS["deepseek_v32"]
    form = MessageFormat.detect(template, {"｜DSML｜": 2040}.get, special_tokens=["｜DSML｜"])
    assert form.needs_special_tokens
    assert read_all(form, [write([CITY])], use=tool_use(TOOLS)) == pieces_of(CITY)
    grammar = form.grammar("", tool_use(FORCED, "required"))
    assert grammar is not None
    assert '"<" <[2040]> "function_calls>"' in grammar.source
    assert "｜DSML｜" not in grammar.source
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar.source), matching_tokenizer())


@pytest.mark.parametrize("name", ["qwen3_coder", "mimo"])
def test_a_section_that_was_not_opened_is_read(name: str) -> None:
    template, write = PUBLISHERS[name]
    text = write([CITY, TIME]).replace("<tool_call>\n", "")
    for end in ("", "\nDone."):
        said = content("Done.") if end else []
        assert read(template, "See.\n" + text + end, use=tool_use(TOOLS)) == [
            *content("See."),
            *pieces_of(CITY, TIME),
            *said,
        ]


def test_glms_newer_models_write_no_line_breaks() -> None:
    use = tool_use(FORCED, "required")
    with_breaks = PUBLISHERS["glm45"][1]([("get_weather", '{"s": "Rome"}'), TIME])
    without = with_breaks.replace("\n", "")
    assert accepts(family_templates.GLM_4_7, without, use)
    assert not accepts(family_templates.GLM_4_7, with_breaks, use)
    assert not accepts(family_templates.GLM_4_5, without, use)
    for text in (without, with_breaks):
        assert read(family_templates.GLM_4_7, text, use=use) == pieces_of(("get_weather", '{"s": "Rome"}'), TIME)


@every_publisher
def test_grammars_compile_for_any_schema(name: str) -> None:
    grammar = detect(PUBLISHERS[name][0]).grammar("", tool_use(TOOLS, "required"))
    assert grammar is not None
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar.source))


@pytest.mark.slow
@every_publisher
def test_reading_costs_the_same_for_every_character(name: str) -> None:
    template, write = PUBLISHERS[name]
    form = detect(template)

    def read_long(length: int) -> None:
        string = ("x <b>\n\\ {" * length)[:length]
        long_call = write([("get_weather", json.dumps({"s": string}))])
        many_calls = write([CITY]) * (length // 200)
        openings = "".join(form.tool_format.openings if form.tool_format else ()) * (length // 40)
        for text in (long_call, many_calls, openings):
            read_all(form, text, use=tool_use(TOOLS))
            read_all(form, [text], use=tool_use(TOOLS))

    assert_linear(read_long, 16_000)
