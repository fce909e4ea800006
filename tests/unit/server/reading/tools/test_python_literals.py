"""Python's literals as JSON, and nothing else that Python has."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.server.reading.tools.python_literals import to_json


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("1", "1"),
        (" -2.5 ", "-2.5"),
        ("1e999", "1e999"),
        ("0x1F", "31"),
        ("True", "true"),
        ("false", "false"),
        ("None", "null"),
        ("'a'", '"a"'),
        ("'it\\'s \"é\" \\u00e9 \\x41\\n'", '"it\'s \\"é\\" é A\\n"'),
        (r"'\d+'", '"\\\\d+"'),
        ("'a' 'b'", '"ab"'),
        ("'''a\n'b' '''", "\"a\\n'b' \""),
        ("(1, 'a')", '[1, "a"]'),
        ("[True, None, []]", "[true, null, []]"),
        ("{'a': {'b': (null,)}}", '{"a": {"b": [null]}}'),
        (r"'\ud83d\ude00'", r'"\ud83d\ude00"'),
    ],
)
def test_literals_become_json(source: str, text: str) -> None:
    assert to_json(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "",
        "name",
        "NaN",
        "[1e999, True]",  # infinite in Python, and JSON has no such number
        "f()",
        "a.b",
        "1 + 1",
        "f'{x}'",
        "b'x'",
        "2j",
        "...",
        "{1: 2}",
        "{**a}",
        "{1, 2}",
        "[x for x in y]",
        "lambda: 1",
        "'unclosed",
        "1, 2); f(",
        "[" * 100_000,
        "1" + "+1" * 100_000,
        "-" * 100_000 + "1",
        "9" * 5_000,
    ],
)
def test_what_is_no_literal_is_refused(source: str) -> None:
    assert to_json(source) is None


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(value=_VALUES)
def test_python_and_json_say_the_same(value: object) -> None:
    for source in (repr(value), json.dumps(value)):
        text = to_json(source)
        assert text is not None
        assert json.loads(text) == value
