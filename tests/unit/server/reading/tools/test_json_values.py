"""JSON as models write it: what is mended, what is left alone, and where it ends."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.server.reading.incoming_text import IncomingText, Reading, TextReader
from orcinus.server.reading.tools.json_values import mended_object, read_brackets
from tests.growth import assert_linear

ENDS = ("</tool_call>",)


def read(*parts: str) -> tuple[str, str]:
    """Return the value as it is handed on, and as it was written."""
    given: list[str] = []
    held: list[str] = []
    text = IncomingText()

    def reading() -> Reading[None]:
        yield from read_brackets(text, given.append, held.append, ENDS)

    reader = TextReader(text, reading())
    for part in parts:
        reader.feed(part)
    reader.end()
    return "".join(given), "".join(held)


@pytest.mark.parametrize(
    ("written", "mended"),
    [
        ('{"a": "x\ny\tz\r\x00"}', '{"a": "x\\ny\\tz\\r\\u0000"}'),
        ('{"a\nb": [1,\n2]}', '{"a\\nb": [1,\n2]}'),
        (r'{"re": "\d+\.\s", "q": "it\'s", "u": "\u00e9\u12 \uXYZ"}', r'{"re": "\\d+\\.\\s", "q": "it' + "'"
         r's", "u": "\u00e9\\u12 \\uXYZ"}'),
        ('{"a": "x\\\ny"}', '{"a": "x\\ny"}'),
        ('{"a": True, "b": [False, None], "True": "None"}', '{"a": true, "b": [false, null], "True": "None"}'),
        ('{"a": [1, 2, ], "b": {"c": 3,\n},}', '{"a": [1, 2 ], "b": {"c": 3\n}}'),
        ("""{'a': 'it\\'s "so"', "b": "it's"}""", """{"a": "it's \\"so\\"", "b": "it's"}"""),
        ('{"a": {"b": [1</tool_call>', '{"a": {"b": [1]}}'),
        ('{"a": 1e5, "b": -1.5E+3, "c": 2e-7, "d": [-1]}', '{"a": 1e5, "b": -1.5E+3, "c": 2e-7, "d": [-1]}'),
        ('{"a":NaN, "b": [-Infinity,Infinity, -NaN], "c": "NaN"}', '{"a":null, "b": [null,null, null], "c": "NaN"}'),
    ],
)  # fmt: skip
def test_what_can_be_read_as_json_is_made_json(written: str, mended: str) -> None:
    assert read(written)[0] == mended
    assert read(*written)[0] == mended
    assert read(written)[1] == written.removesuffix("</tool_call>")
    json.loads(mended)


@pytest.mark.parametrize(
    "written", ['{"a": one}', '{"a" < 1}', '{"a": }', '{"a" 1}', '{"a": "b', '{"a": ["</tool_call>"']
)
def test_what_cannot_is_handed_on_as_it_is(written: str) -> None:
    assert read(written) == (written, written)
    assert read(*written) == (written, written)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(), _JSON), indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_good_json_stays_as_it_is(value: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    written = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read(*written) == (written, written)
    assert mended_object(written) == (written if not _has_half_a_pair(written) else None)


def _has_half_a_pair(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


@pytest.mark.parametrize("source", ["[1]", "1", "{", '{"a": }', '{"a": "\ud800"}', "{" * 100_000 + "}" * 100_000])
def test_what_is_no_object_is_none(source: str) -> None:
    assert mended_object(source) is None


@pytest.mark.parametrize("source", ["", " ", "{}"])
def test_nothing_is_an_object_without_members(source: str) -> None:
    assert mended_object(source) == "{}"


@pytest.mark.slow
@pytest.mark.parametrize("unit", ['"a\n\\d', "[", "{'a': True, ", ",", "None "])
def test_mending_costs_the_same_for_every_character(unit: str) -> None:
    def read_long(length: int) -> None:
        text = "{" + unit * (length // len(unit))
        read(text)
        read(*text)

    assert_linear(read_long, 100_000)
