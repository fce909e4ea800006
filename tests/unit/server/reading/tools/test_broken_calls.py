"""Calls that models write wrong, or not to their end: what is mended, left out, and left alone."""

import json

import pytest

from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from tests.unit.server.reading.tools import templates
from tests.unit.server.reading.tools.calling import call, content, detect, read, read_all, tool_use

HERMES = templates.QWEN_2_5
LLAMA = templates.LLAMA_3_1
MISTRAL = templates.MISTRAL_V3
MISTRAL_NEW = templates.MISTRAL_V11
PYTHONIC = templates.LLAMA_4_PYTHONIC


def test_arguments_end_where_the_model_was_cut_off() -> None:
    assert read(HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": "b') == call(0, "f", '{"a": "b')


def test_arguments_end_before_a_closing_tag_that_comes_too_early() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>\n<tool_call>{"name": "g"}</tool_call>'
    assert read(HERMES, text) == [*call(0, "f", '{"a": 1}'), *call(1, "g", "{}")]


def test_arguments_that_are_no_good_json_are_handed_on_as_they_are() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": one, "b" < 1}}</tool_call>'
    assert read(HERMES, text) == call(0, "f", '{"a": one, "b" < 1}')


@pytest.mark.parametrize(
    "junk",
    ["}", "}}\n", " \n", '"}', "]", ', "id": 1}', "\n{", '\n{"nam', "\n```", " that is all", "} </tool_cal", "é"],
)
def test_what_stands_between_a_call_and_its_closing_tag_is_left_out(junk: str) -> None:
    text = f'See.<tool_call>{{"name": "f", "arguments": {{"a": 1}}}}{junk}</tool_call> Done.'
    assert read(HERMES, text) == [*content("See."), *call(0, "f", '{"a": 1}'), *content("Done.")]
    twice = f'<tool_call>{{"name": "f", "arguments": {{}}}}{junk}</tool_call>' * 2
    assert read(HERMES, twice) == [*call(0, "f", "{}"), *call(1, "f", "{}")]


@pytest.mark.parametrize("fence", ["```json\n", "```\n", "\n```JSON ", "```"])
def test_a_call_that_is_fenced_as_code_inside_its_tags_is_read(fence: str) -> None:
    text = f'See.<tool_call>{fence}{{"name": "f", "arguments": {{"a": 1}}}}\n```\n</tool_call> Done.'
    assert read(HERMES, text) == [*content("See."), *call(0, "f", '{"a": 1}'), *content("Done.")]
    no_call = f"<tool_call>{fence}none```</tool_call>"
    assert read(HERMES, no_call) == content(no_call)


def test_numbers_that_json_has_not_are_null_in_arguments() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a":NaN, "b": -Infinity, "c": "NaN"}}</tool_call>'
    assert read(HERMES, text) == call(0, "f", '{"a":null, "b": null, "c": "NaN"}')
    assert read(LLAMA, '{"name": "get_time", "parameters": {"a":NaN}}') == call(0, "get_time", '{"a":null}')
    assert read(MISTRAL_NEW, '[TOOL_CALLS]get_time[ARGS]{"a": [NaN]}') == call(0, "get_time", '{"a": [null]}')


def test_a_bracket_too_many_does_not_hide_the_next_call_in_the_tag() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}}\n{"name": "g", "arguments": {}}}</tool_call>'
    assert read(HERMES, text) == [*call(0, "f", "{}"), *call(1, "g", "{}")]


@pytest.mark.parametrize(("rest", "said"), [("}\n", []), ("}\nDone.", content("Done.")), (" {1} ", content("{1} "))])
@pytest.mark.parametrize("is_cut", [True, False])
def test_what_follows_a_call_that_is_never_closed_is_content(rest: str, said: list[Piece], is_cut: bool) -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}' + rest
    assert read(HERMES, text, is_cut=is_cut) == [*call(0, "f", "{}"), *said]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LLAMA, '{"name": "get_time", "parameters": {}}}'),
        (LLAMA, '[{"name": "get_time", "parameters": {}}}]}\n'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "get_time", "arguments": {}}}]'),
        (MISTRAL_NEW, "[TOOL_CALLS]get_time[ARGS]{}}\n"),
        (PYTHONIC, "[get_time())]\n"),
        (PYTHONIC, "<|python_start|>[get_time()]]<|python_end|>"),
    ],
)
def test_a_bracket_too_many_after_a_call_is_no_content(template: str, text: str) -> None:
    assert read(template, text) == call(0, "get_time", "{}")


CITY = "Pa\n\tr\x01is \r"
ONE_CALL = [
    (HERMES, f'<tool_call>{{"name": "get_weather", "arguments": {{"city": "{CITY}"}}}}</tool_call>'),
    (HERMES, f'<tool_call>{{"arguments": {{"city": "{CITY}"}}, "name": "get_weather"}}</tool_call>'),
    (HERMES, f'<tool_call>{{"name": "get_weather", "arguments": "{{\\"city\\": \\"{CITY}\\"}}"}}</tool_call>'),
    (LLAMA, f'{{"name": "get_weather", "parameters": {{"city": "{CITY}"}}}}'),
    (MISTRAL, f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {{"city": "{CITY}"}}}}]'),
    (MISTRAL_NEW, f'[TOOL_CALLS]get_weather[ARGS]{{"city": "{CITY}"}}'),
    (PYTHONIC, f'[get_weather(city="{CITY}")]'),
    (PYTHONIC, f"[get_weather(city='{CITY}')]"),
]


@pytest.mark.parametrize(("template", "text"), ONE_CALL)
def test_control_characters_in_strings_are_escaped(template: str, text: str) -> None:
    start, arguments = read(template, text)
    assert isinstance(start, ToolCallStart)
    assert isinstance(arguments, ToolCallArguments)
    assert (start.name, json.loads(arguments.text)) == ("get_weather", {"city": CITY})


@pytest.mark.parametrize(("template", "text"), ONE_CALL)
def test_a_call_that_is_cut_before_its_name_is_known_is_no_text(template: str, text: str) -> None:
    for length in range(len(text)):
        for parts in ([text[:length]], text[:length]):
            pieces = read_all(detect(template), parts, use=tool_use(), is_cut=True)
            assert all(not isinstance(piece, Content) for piece in pieces), text[:length]


@pytest.mark.parametrize(("template", "text"), ONE_CALL)
@pytest.mark.parametrize("beginning", ["<", "</tool_", "[", '"', '""', "<|python_"])
def test_a_limit_may_cut_a_call_in_the_midst_of_a_marker(template: str, text: str, beginning: str) -> None:
    form, use = detect(template), tool_use()
    for length in range(len(text)):
        pieces = read_all(form, [text[:length] + beginning], use=use, is_cut=True)
        assert read_all(form, [text[:length], beginning], use=use, is_cut=True) == pieces


@pytest.mark.parametrize("text", ['[get_weather(city="""x', "[get_weather(city='''x"])
def test_a_limit_may_cut_the_end_of_a_long_string(text: str) -> None:
    for num_marks in (1, 2):
        assert read(PYTHONIC, text + text[-2] * num_marks, is_cut=True) == call(0, "get_weather", '{"city": "x')


@pytest.mark.parametrize("text", ["<tool_call><tool_call>", '<tool_call>\n<tool_call>\n{"name": "f"'])
def test_an_opening_written_twice_is_no_text(text: str) -> None:
    assert read(HERMES, text, is_cut=True) == []
    whole = '<tool_call>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read(HERMES, whole) == call(0, "f", "{}")
    assert read(MISTRAL, '[TOOL_CALLS][TOOL_CALLS] [{"name": "f", "arguments": {}}]') == call(0, "f", "{}")


def test_what_ends_like_a_marker_is_text_unless_it_was_cut() -> None:
    assert read(HERMES, "a <tool_ca") == content("a <tool_ca")
    assert read(HERMES, "a <tool_ca", is_cut=True) == content("a ")
    assert read(templates.QWEN_3, "<think>a</thi", is_cut=True) == [Reasoning("a")]
    assert read(templates.QWEN_3, "<thi", is_cut=True) == []
