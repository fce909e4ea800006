"""Text that comes in parts, read as if all of it were there."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcinus.server.reading.incoming_text import IncomingText, Markers, Reading, TextReader


def run(read: Callable[[IncomingText], Reading[None]], *parts: str) -> None:
    text = IncomingText()
    reader = TextReader(text, read(text))
    for part in parts:
        reader.feed(part)
    reader.end()


def split_at(markers: Markers, *parts: str) -> list[str]:
    """Return what stands between the markers, and the markers, in capitals."""
    found = [""]

    def give(text: str) -> None:
        found[-1] += text

    def read(text: IncomingText) -> Reading[None]:
        while marker := (yield from text.read_until(markers, give)):
            found.extend([marker.upper(), ""])

    run(read, *parts)
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [""]),
        ("xaby", ["x", "AB", "y"]),
        ("xabcy", ["x", "ABC", "y"]),
        ("xab", ["x", "AB", ""]),
        ("xa", ["xa"]),
        ("ababca", ["", "AB", "", "ABC", "a"]),
    ],
)
def test_the_longer_of_two_markers_at_one_place_counts(text: str, found: list[str]) -> None:
    markers = Markers(["ab", "abc"])
    assert split_at(markers, text) == found
    assert split_at(markers, *text) == found


@given(
    markers=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    parts=st.lists(st.text("abcx", max_size=4), max_size=10),
)
def test_where_the_text_is_cut_does_not_matter_to_markers(markers: list[str], parts: list[str]) -> None:
    assert split_at(Markers(markers), *parts) == split_at(Markers(markers), "".join(parts))


def test_what_cannot_be_a_marker_is_given_away_at_once() -> None:
    given: list[str] = []
    text = IncomingText()
    reader = TextReader(text, text.read_rest(given.append))
    reader.feed("a")
    assert given == ["a"]
    reader.feed("b")
    reader.end()
    assert given == ["a", "b"]


@pytest.mark.parametrize("parts", [["  ab12!"], [*"  ab12!"]])
def test_a_reader_takes_what_it_looks_for(parts: list[str]) -> None:
    taken: list[object] = []

    def read(text: IncomingText) -> Reading[None]:
        taken.append((yield from text.take_space()))
        taken.append((yield from text.comes("ab")))
        taken.append((yield from text.take_if("ac")))
        taken.append((yield from text.take_if("ab")))
        taken.append((yield from text.take_all(re.compile("[0-9]+"))))
        taken.append((yield from text.peek()))
        taken.append(text.take())
        taken.append((yield from text.peek()))
        taken.append((yield from text.take_if("x")))

    run(read, *parts)
    assert taken == ["  ", True, "", "ab", "12", "!", "!", "", ""]
