"""Whatever a message says and wherever its text is cut, the pieces, joined, are what was written. And cheaply so."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.server.reading.pieces import Piece
from tests.growth import assert_linear
from tests.unit.server.reading.tools import templates
from tests.unit.server.reading.tools.calling import call, content, cut, detect, function, read_all, reasoning, tool_use

NAMES = ("get_weather", "get-time", "f")
TOOLS = [function(name) for name in NAMES]
Call = tuple[str, dict[str, Any]]

_FRAGMENTS = (
    "<tool_call>",
    "</tool_call>",
    "<tool",
    "</think>",
    "[TOOL_CALLS",
    "[ARGS]",
    "é😀\u2028",
    '"}{[',
    "\\",
    " ",
    "\n",
)
_TEXT = st.lists(st.sampled_from(_FRAGMENTS) | st.text(max_size=5), max_size=6).map("".join)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_PLACES = st.lists(st.integers(0, 2000), max_size=12)


def calls_with(keys: st.SearchStrategy[str]) -> st.SearchStrategy[list[Call]]:
    return st.lists(st.tuples(st.sampled_from(NAMES), st.dictionaries(keys, _VALUES, max_size=3)), max_size=3)


def content_without(*markers: str) -> st.SearchStrategy[str]:
    """Text around calls, which has no markers of its own and ends in what is not white space."""
    return _TEXT.map(lambda text: text.strip(" \t\r\n")).filter(lambda text: not any(m in text for m in markers))


@dataclass(frozen=True)
class Way:
    """A way of writing calls, and how a model that was trained on it writes them."""

    template: str
    write: Callable[[list[Call]], str]
    starts_with_calls: bool = False


def as_json(value: Any, *, is_ascii: bool = False) -> str:
    return json.dumps(value, ensure_ascii=is_ascii)


def write_hermes(calls: list[Call]) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {as_json(arguments)}}}\n</tool_call>'
        for name, arguments in calls
    )


def write_hermes_2_pro(calls: list[Call]) -> str:
    return "".join(
        f'<tool_call>\n{{"arguments": {as_json(arguments, is_ascii=True)}, "name": "{name}"}}\n</tool_call>'
        for name, arguments in calls
    )


def write_llama(calls: list[Call]) -> str:
    return "; ".join(f'{{"name": "{name}", "parameters": {as_json(arguments)}}}' for name, arguments in calls)


def write_mistral(calls: list[Call]) -> str:
    objects = [f'{{"name": "{name}", "arguments": {as_json(arguments)}}}' for name, arguments in calls]
    return f"[TOOL_CALLS] [{', '.join(objects)}]" if calls else ""


def write_new_mistral(calls: list[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[CALL_ID]a1B2c3D4e[ARGS]{as_json(arguments)}" for name, arguments in calls)


def write_python(calls: list[Call]) -> str:
    written = [
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})" for name, arguments in calls
    ]
    return f"[{', '.join(written)}]" if calls else ""


WAYS = {
    "hermes": Way(templates.QWEN_3, write_hermes),
    "hermes_2_pro": Way(templates.HERMES_2_PRO, write_hermes_2_pro),
    "mistral_v3": Way(templates.MISTRAL_V3, write_mistral),
    "mistral_v11": Way(templates.MISTRAL_V11, write_new_mistral),
    "llama3_json": Way(templates.LLAMA_3_1, write_llama, starts_with_calls=True),
}


def pieces_of(calls: list[Call]) -> list[Piece]:
    return [piece for i, (name, arguments) in enumerate(calls) for piece in call(i, name, as_json(arguments))]


def normalized(pieces: list[Piece]) -> list[Any]:
    """With the arguments parsed, for the same JSON can be written in several ways."""
    return [json.loads(piece.text) if "Arguments" in type(piece).__name__ else piece for piece in pieces]  # type: ignore[union-attr]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@given(before=content_without("<tool_call>", "[TOOL_CALLS]", "</think>"), calls=calls_with(_TEXT), places=_PLACES)
def test_a_message_is_read_as_it_was_written(way: Way, before: str, calls: list[Call], places: list[int]) -> None:
    if way.starts_with_calls and calls:
        before = ""
    text = before + ("\n" if before and calls else "") + way.write(calls)
    if not calls and before.lstrip(" \t\r\n").startswith("<think>"):
        return
    written = content(before) if before else []
    parts = cut(text, places)
    read = read_all(detect(way.template), parts, use=tool_use(TOOLS))
    assert normalized(read) == normalized([*written, *pieces_of(calls)])
    assert read == read_all(detect(way.template), [text], use=tool_use(TOOLS))


@given(calls=calls_with(st.from_regex("[a-z_][a-z0-9_]{0,8}", fullmatch=True)), places=_PLACES)
def test_python_calls_are_read_as_they_were_written(calls: list[Call], places: list[int]) -> None:
    read = read_all(detect(templates.LLAMA_4_PYTHONIC), cut(write_python(calls), places), use=tool_use(TOOLS))
    assert normalized(read) == normalized(pieces_of(calls))


@given(
    thought=content_without("<think>", "</think>"),
    answer=content_without("<tool_call>").filter(lambda answer: not answer.lstrip().startswith("</think>")),
    calls=calls_with(_TEXT),
    is_open=st.booleans(),
    places=_PLACES,
)
def test_thoughts_and_calls_are_read_as_they_were_written(
    thought: str, answer: str, calls: list[Call], is_open: bool, places: list[int]
) -> None:
    text = ("" if is_open else "<think>\n") + f"{thought}\n</think>\n\n{answer}\n{write_hermes(calls)}"
    if not calls:
        text = text.removesuffix("\n")
    tail = "<|im_start|>assistant\n" + ("<think>\n" if is_open else "")
    written = [*(reasoning(thought) if thought else []), *(content(answer) if answer else []), *pieces_of(calls)]
    read = read_all(detect(templates.QWEN_3), cut(text, places), tail=tail, use=tool_use(TOOLS))
    assert read == written


_JUNK = st.lists(
    st.sampled_from(
        [
            *_FRAGMENTS,
            *(
                "[TOOL_CALLS]",
                "<think>",
                '{"name": "f", ',
                '"parameters": {',
                '"arguments": {',
                '"name": "f"',
                "}",
                "]",
            ),
            *(
                "[",
                "{",
                ", ",
                "f(",
                "a=",
                "'",
                ")",
                "f",
                "null",
                "<|python_tag|>",
                "</s>",
                "[CALL_ID]",
                '"a": 1',
                "\\u0041",
            ),
        ]
    ),
    max_size=25,
).map("".join)


@pytest.mark.parametrize("template", [*(way.template for way in WAYS.values()), templates.LLAMA_4_PYTHONIC])
@given(text=_JUNK, places=_PLACES)
def test_where_a_text_is_cut_does_not_matter(template: str, text: str, places: list[int]) -> None:
    message_format = detect(template, special_tokens=["</s>", "[TOOL_CALLS]"])
    use = tool_use(TOOLS)
    whole = read_all(message_format, [text], use=use)
    assert read_all(message_format, cut(text, places), use=use) == whole
    assert read_all(message_format, text, use=use) == whole


def long_text(length: int) -> str:
    return ("x{\"[ \\ <tool_ \n\n 'é" * length)[:length]


def long_json(length: int) -> str:
    return json.dumps({"a": long_text(length * 3 // 4), "b": [[{}]] * (length // 25)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "text"),
    [
        (templates.QWEN_3, long_text),
        (templates.QWEN_3, lambda length: "<think>" + long_text(length)),
        (templates.QWEN_3, lambda length: " " * length),
        (templates.QWEN_3, lambda length: f'<tool_call>{{"name": "f", "arguments": {long_json(length)}}}</tool_call>'),
        (templates.QWEN_3, lambda length: f'<tool_call>{{"arguments": {long_json(length)}, "name": "f"}}</tool_call>'),
        (templates.QWEN_3, lambda length: '<tool_call>{"x": ' * (length // 17)),
        (templates.LLAMA_3_1, lambda length: f'{{"type": {long_json(length)}'),
        (templates.MISTRAL_V11, lambda length: "[TOOL_CALLS]" + "f" * length),
        (templates.LLAMA_4_PYTHONIC, lambda length: f"[f(a={long_text(length)!r})]"),
        (templates.LLAMA_4_PYTHONIC, lambda length: "[f(a=" + "[" * length),
    ],
)
def test_reading_costs_the_same_for_every_character(template: str, text: Callable[[int], str]) -> None:
    message_format = detect(template, special_tokens=[f"<special_{i}>" for i in range(1000)])

    def read_in_pieces_and_whole(length: int) -> None:
        read_all(message_format, text(length), use=tool_use(TOOLS))
        read_all(message_format, [text(length)], use=tool_use(TOOLS))

    assert_linear(read_in_pieces_and_whole, 200_000)
