"""What models write, format by format, and the pieces that come of it."""

import json
import re

import pytest

from orcinus.server.reading.message_reader import MessageReader
from orcinus.server.reading.pieces import Content, Piece, ToolCallArguments, ToolCallStart
from tests.unit.server.reading.tools import family_templates, templates
from tests.unit.server.reading.tools.calling import (
    call,
    content,
    detect,
    function,
    read,
    read_parts,
    tool_use,
)

HERMES = templates.QWEN_2_5
LLAMA = templates.LLAMA_3_1
MISTRAL = templates.MISTRAL_V3
MISTRAL_NEW = templates.MISTRAL_V11
PYTHONIC = templates.LLAMA_4_PYTHONIC


def ids_of(template: str, text: str) -> list[str]:
    reader = detect(template).reader("", tool_use())
    assert reader is not None
    return [piece.call_id for piece in reader.feed(text) if isinstance(piece, ToolCallStart)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello.", content("Hello.")),
        (" Hello \n", content(" Hello \n")),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', call(0, "f", '{"a": 1}')),
        ('<tool_call>{"arguments": {"a": [1, {}]}, "name": "f"}</tool_call>', call(0, "f", '{"a": [1, {}]}')),
        ('<tool_call>{"name": "f"}</tool_call>', call(0, "f", "{}")),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', call(0, "f", "{}")),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}</tool_call>', call(0, "f", '{"a": "é"}')),
        ('<tool_call>{"arguments": "{}", "name": "f"}</tool_call>', call(0, "f", "{}")),
        ('<tool_call>{"id": 7, "x": [{"y": "}"}], "name": "f", "arguments": {}, "z": 1.5e3}', call(0, "f", "{}")),
        ('<tool_call>{"name": "caf\\u00e9", "arguments": {}}', call(0, "café", "{}")),
        (
            'Let me see.\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n\nDone. ',
            [*content("Let me see."), *call(0, "f", "{}"), *content("Done. ")],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g", "arguments": {"b": 2}}',
            [*call(0, "f", "{}"), *call(1, "g", '{"b": 2}')],
        ),
        (
            '<tool_call>\n{"name": "f", "arguments": {}}\n{"name": "g", "arguments": {}}\n</tool_call> ',
            [*call(0, "f", "{}"), *call(1, "g", "{}")],
        ),
        (
            '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</tool_call>',
            [*call(0, "f", "{}"), *call(1, "g", "{}")],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"s": "</tool_call> \\" } \\\\"}}</tool_call>',
            call(0, "f", '{"s": "</tool_call> \\" } \\\\"}'),
        ),
    ],
)
def test_hermes(text: str, pieces: list[Piece]) -> None:
    assert read(HERMES, text) == pieces


@pytest.mark.parametrize(
    "text",
    [
        "a <tool_call",
        "a <tool_call>",
        "a <tool_call> b </tool_call> c",
        "a </tool_call> b",
        '<tool_call>\n{"name": "f", "argum',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "a\nb", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        "<tool_call>{'name': 'f'}</tool_call>",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"' + "k" * 300 + '": 1, "name": "f"}</tool_call>',
    ],
)
def test_nothing_is_lost_of_what_only_looks_like_a_hermes_call(text: str) -> None:
    assert read(HERMES, text) == content(text)


def test_a_call_after_a_malformed_one_is_a_call() -> None:
    text = '<tool_call>{"name": "f\n</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    assert read(HERMES, text) == [*content('<tool_call>{"name": "f\n</tool_call>'), *call(0, "g", "{}")]


def test_a_call_is_streamed_as_its_arguments_come() -> None:
    parts = ['<tool_call>\n{"name": "f", "argu', 'ments": {"city', '": "Pa', 'ris"}', "}\n</tool", "_call>"]
    assert read_parts(detect(HERMES), parts, use=tool_use()) == [
        [],
        call(0, "f", '{"city'),
        call(0, "f", '": "Pa')[1:],
        call(0, "f", 'ris"}')[1:],
        [],
        [],
        [],
    ]


def test_a_tag_is_held_back_until_it_is_known_to_be_one() -> None:
    parts = ["a ", "<tool", "_call", "er> b", "<"]
    assert read_parts(detect(HERMES), parts, use=tool_use()) == [
        content("a"),
        [],
        [],
        content(" <tool_caller> b"),
        [],
        content("<"),
    ]


def test_a_call_of_a_tool_that_the_request_does_not_have_is_a_call_after_a_marker() -> None:
    assert read(HERMES, '<tool_call>{"name": "unknown", "arguments": {}}') == call(0, "unknown", "{}")
    assert read(MISTRAL_NEW, "[TOOL_CALLS]unknown[ARGS]{}") == call(0, "unknown", "{}")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (HERMES, '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>\n' * 3),
        (MISTRAL, '[TOOL_CALLS] [{"name": "get_time", "arguments": {}}, {"name": "get_weather", "arguments": {}}]'),
        (MISTRAL_NEW, "[TOOL_CALLS]get_time[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{}"),
        (LLAMA, '{"name": "get_time", "parameters": {}}; {"name": "get_time", "parameters": {}}'),
        (PYTHONIC, '[get_time(), get_weather(city="x")]'),
    ],
)
def test_only_the_first_call_comes_where_parallel_calls_are_not_wanted(template: str, text: str) -> None:
    assert read(template, text, use=tool_use(parallel=False)) == call(0, "get_time", "{}")


def test_the_calls_of_a_message_are_counted() -> None:
    reader = detect(HERMES).reader("", tool_use())
    assert isinstance(reader, MessageReader)
    assert reader.num_tool_calls == 0
    reader.feed('<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "g"}')
    assert reader.num_tool_calls == 2


def test_ids_are_openais_or_mistrals_and_differ() -> None:
    openai = ids_of(HERMES, '<tool_call>{"name": "f"}</tool_call>' * 5)
    mistral = ids_of(MISTRAL, '[TOOL_CALLS] [{"name": "f"}, {"name": "f", "id": "123456789"}]')
    assert all(re.fullmatch("call_[A-Za-z0-9]{24}", call_id) for call_id in openai)
    assert all(re.fullmatch("[A-Za-z0-9]{9}", call_id) for call_id in mistral)
    assert len({*openai, *mistral}) == 7


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello {there}.", content("Hello {there}.")),
        ('{"name": "get_time", "parameters": {}}', call(0, "get_time", "{}")),
        ('\n<|python_tag|>{"name": "get_time", "parameters": {}}', call(0, "get_time", "{}")),
        (
            "Wait. " + '<|python_tag|>{"name": "get_time", "parameters": {}}' * 2,
            [*content("Wait."), *call(0, "get_time", "{}"), *call(1, "get_time", "{}")],
        ),
        ("<|python_tag|>print(1)", content("print(1)")),
        ('{"type": "function", "name": "get_time", "parameters": {}}', call(0, "get_time", "{}")),
        (
            '{"name": "get_weather", "arguments": {"city": "Z;}"}}; {"name": "get_time", "parameters": {}}\n',
            [*call(0, "get_weather", '{"city": "Z;}"}'), *call(1, "get_time", "{}")],
        ),
        (
            '[{"name": "get_time", "parameters": {}},\n{"name": "get_time", "parameters": {}}]',
            [*call(0, "get_time", "{}"), *call(1, "get_time", "{}")],
        ),
        (
            '{"name": "get_time", "parameters": {}} There.',
            [*call(0, "get_time", "{}"), *content("There.")],
        ),
        (
            '{"name": "get_time", "parameters": {}}; {"name": "Ann"}',
            [*call(0, "get_time", "{}"), *content('; {"name": "Ann"}')],
        ),
    ],
)
def test_llama3_json(text: str, pieces: list[Piece]) -> None:
    assert read(LLAMA, text) == pieces


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "parameters": {}}',
        '{"name": "get_time"}',
        '{"name": "get_time", "parameters": 5}',
        '{"name": "get_time", "when": {"parameters": {}}}',
        '{"result": {"name": "get_time", "parameters": {}}}',
        ' [1] See {"name": "get_time", "parameters": {}}',
        'A: {"name": "get_time", "parameters": {}}',
        "{",
        "[",
        "[]",
        "<|python_",
    ],
)
def test_an_answer_that_is_no_llama_call_comes_out_unharmed(text: str) -> None:
    assert read(LLAMA, text) == content(text)


def test_an_answer_in_json_is_not_held_back_to_its_end() -> None:
    parts = ['{"answer"', ': {"a": 1,', ' "b": 2}}']
    assert read_parts(detect(LLAMA), parts, use=tool_use()) == [*map(content, parts), []]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello.", content("Hello.")),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', call(0, "f", '{"a": 1}')),
        (
            'Wait. [TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}, {"name": "g", "arguments": {}}]',
            [*content("Wait."), *call(0, "f", "{}"), *call(1, "g", "{}")],
        ),
        ('[TOOL_CALLS]{"name": "f", "arguments": {}}', call(0, "f", "{}")),
        ('[TOOL_CALLS]f[ARGS]{"a": "[ARGS]"}', call(0, "f", '{"a": "[ARGS]"}')),
        ('[TOOL_CALLS]f{"a": 1}', call(0, "f", '{"a": 1}')),
        (
            "Wait.\n[TOOL_CALLS]f-1[CALL_ID]abcdefghi[ARGS] {}[TOOL_CALLS]g[CALL_ID]abcdefghj[ARGS]{}",
            [*content("Wait."), *call(0, "f-1", "{}"), *call(1, "g", "{}")],
        ),
        ('[TOOL_CALLS]f[ARGS]{"a": [1', call(0, "f", '{"a": [1')),
    ],
)
@pytest.mark.parametrize("template", [MISTRAL, MISTRAL_NEW])
def test_mistral(template: str, text: str, pieces: list[Piece]) -> None:
    assert read(template, text) == pieces


@pytest.mark.parametrize(
    "text",
    [
        "a [TOOL_CALL] b",
        "a [TOOL_CALLS",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS]f[ARGS]",
        "[TOOL_CALLS]f[CALL_ID]abc",
        "[TOOL_CALLS]f[ARGS]5",
        "[TOOL_CALLS][ARGS]{}",
        "[TOOL_CALLS] [5]",
    ],
)
def test_nothing_is_lost_of_what_only_looks_like_a_mistral_call(text: str) -> None:
    assert read(MISTRAL_NEW, text) == content(text)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello [there](x).", content("Hello [there](x).")),
        ("[get_time()]", call(0, "get_time", "{}")),
        ("<|python_start|>[get_time()]<|python_end|>\n", call(0, "get_time", "{}")),
        (
            ' [get_weather(city="Pa\\"ris, [(", days=3), get_time( )]',
            [*call(0, "get_weather", '{"city": "Pa\\"ris, [(", "days": 3}'), *call(1, "get_time", "{}")],
        ),
        (
            "[get_weather(city='Zürich \"x\"', days=-1, a=True, b=false, c=None, d=null, e=(1, 2.5), f={'g': []},)]",
            call(
                0,
                "get_weather",
                '{"city": "Zürich \\"x\\"", "days": -1, "a": true, "b": false, "c": null, "d": null, '
                '"e": [1, 2.5], "f": {"g": []}}',
            ),
        ),
        ('[get_weather(city="""a, ")\nb""")]', call(0, "get_weather", '{"city": "a, \\")\\nb"}')),
        ("[get_weather(city='', days = 1 )]", call(0, "get_weather", '{"city": "", "days": 1}')),
        ("[get_time()] There.", [*call(0, "get_time", "{}"), *content("There.")]),
    ],
)
def test_pythonic(text: str, pieces: list[Piece]) -> None:
    assert read(PYTHONIC, text) == pieces


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]",
        "[get_time](https://example.com)",
        "[get_time]",
        "[unknown(a=1)]",
        "[get_time(",
        '[get_weather("Paris")]',
        "[get_weather(city=Paris)]",
        "[get_weather(city=__import__('os').getcwd())]",
        "[get_weather(city=open)]",
        "[get_weather(city=)]",
        '[get_weather(city={1: "a"})]',
        "[get_weather(city=1e999 * 2)]",
        "See [get_time()]",
        "<|python_start|>print(1)<|python_end|>",
    ],
)
def test_an_answer_that_is_no_python_call_comes_out_unharmed(text: str) -> None:
    assert read(PYTHONIC, text) == content(text)


def test_python_arguments_come_one_by_one_and_strings_as_they_come() -> None:
    parts = ["[get_weather(city", '="Pa', "ris", '"', ", da", "ys=3", ")", "]"]
    assert read_parts(detect(PYTHONIC), parts, use=tool_use()) == [
        [],
        call(0, "get_weather", '{"city": "Pa'),
        call(0, "get_weather", "ris")[1:],
        [],
        call(0, "get_weather", '"')[1:],
        [],
        call(0, "get_weather", ', "days": 3}')[1:],
        [],
        [],
    ]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (r"'a\n\t\\b'", "a\n\t\\b"),
        (r"'it\'s'", "it's"),
        ("'it's so'", "it's so"),
        ('"a "b" c"', 'a "b" c'),
        (r"'\x41\u00e9\U0001F600\101\0'", "Aé😀A\0"),
        (r"'\d\N\x4'", r"\d\N\x4"),
        (r"'\ud83d\ude00'", "😀"),
        ("'a\\\nb'", "ab"),
        ("'''a'b\n''c'''", "a'b\n''c"),
        ("''", ""),
    ],
)
def test_a_string_in_python_is_read_as_python_reads_it_and_mended(written: str, value: str) -> None:
    _, arguments = read(PYTHONIC, f"[get_weather(city={written})]")
    assert isinstance(arguments, ToolCallArguments)
    assert json.loads(arguments.text) == {"city": value}


def test_a_string_in_python_that_breaks_off_is_what_came_of_it() -> None:
    assert read(PYTHONIC, '[get_weather(city="Par') == call(0, "get_weather", '{"city": "Par')
    assert read(PYTHONIC, "[get_weather(city='''Pa'", is_cut=True) == call(0, "get_weather", '{"city": "Pa')


def test_a_python_call_that_breaks_off_keeps_the_arguments_that_were_complete() -> None:
    text = '[get_weather(city="Paris", days=soon)]'
    assert read(PYTHONIC, text) == [*call(0, "get_weather", '{"city": "Paris"'), *content(", days=soon)]")]


def test_calls_of_a_request_that_forbids_them_are_text() -> None:
    assert detect(HERMES).reader("", tool_use(choice="none")) is None
    assert detect(HERMES).reader("", None) is None


def test_tools_with_dashes_in_their_names_can_be_called_in_python() -> None:
    use = tool_use([function("get-time")])
    assert read(PYTHONIC, "[get-time()]", use=use) == call(0, "get-time", "{}")


def test_content_is_never_empty() -> None:
    assert read(HERMES, "") == []
    assert all(piece != Content("") for piece in read(HERMES, '\n<tool_call>{"name": "f"}</tool_call>\n'))


FUNCTIONARY = family_templates.FUNCTIONARY_3_2


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("all\nHello >> there.", content("Hello >> there.")),
        ("Hello.", content("Hello.")),
        ('f\n{"a": 1}', call(0, "f", '{"a": 1}')),
        (
            'all\nSee.>>>f\n{"a": ">>>"}\n>>>g\n{}}',
            [*content("See."), *call(0, "f", '{"a": ">>>"}'), *call(1, "g", "{}")],
        ),
        (">>>f\n{}>>>all\nDone.", [*call(0, "f", "{}"), *content("Done.")]),
        ("f\nno call", content("f\nno call")),
        ("all\na >>> b >>>", content("a >>> b >>>")),
    ],
)
def test_functionary_names_its_recipients(text: str, pieces: list[Piece]) -> None:
    assert read(FUNCTIONARY, text) == pieces


def test_what_functionary_says_to_everybody_is_its_answer_without_tools_too() -> None:
    for use in (None, tool_use(choice="none")):
        reader = detect(FUNCTIONARY).reader(">>>", use)
        assert reader is not None
        assert [*reader.feed('all\nSee.>>>f\n{"a": 1}'), *reader.finish()] == content('See.>>>f\n{"a": 1}')
