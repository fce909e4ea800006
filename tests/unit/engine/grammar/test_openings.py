"""Openings in free text: found wherever they are split, and only where they count."""

import random

import pytest

from orcinus.engine.grammar.openings import Found, OpeningFinder
from orcinus.engine.sampling_params import Opening, Openings

SPACE = " \n"


def finder(*openings: Opening, resets: tuple[str, ...] = ()) -> OpeningFinder:
    return OpeningFinder(Openings(openings, resets=resets))


def tag(text: str) -> Opening:
    return Opening((text,), (text,))


def first(*parts: str) -> Opening:
    return Opening(parts, ("",), between=SPACE, is_first=True)


def found_in(made: OpeningFinder, text: str) -> tuple[int, str] | None:
    """Return the opening and what follows it."""
    found = made.feed(made.start, text.encode())
    return None if found.opening is None else (found.opening, found.rest.decode())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<call>", (0, "")),
        ("a <call>b", (0, "b")),
        ("<<call>", (0, "")),
        ("<ca<call>x<call>", (0, "x<call>")),
        ("<Call>", None),
        ("<call", None),
        ("", None),
    ],
)
def test_a_tag_is_found_wherever_it_stands(text: str, expected: tuple[int, str] | None) -> None:
    assert found_in(finder(tag("<call>")), text) == expected


def test_the_tag_that_ends_first_counts_and_of_two_the_one_given_first() -> None:
    made = finder(tag("aab"), tag("ab"), tag("b"), tag("a"))
    assert found_in(made, "ab") == (3, "b")
    assert found_in(finder(tag("aab"), tag("ab"), tag("b")), "xaabz") == (0, "z")


@pytest.mark.parametrize(
    ("text", "is_found"),
    [("[f(", True), (" \n[ f (", True), ("x[f(", False), ("[g(", False), ("[f f(", False), ("[[f(", False)],
)
def test_what_has_to_come_first_is_found_at_the_beginning_alone(text: str, is_found: bool) -> None:
    assert (found_in(finder(first("[", "f", "(")), text) is not None) == is_found


@pytest.mark.parametrize(
    ("text", "is_found"),
    [("<h> any to=", True), ("<h>to=", True), ("<h>any<m>to=", False), ("<h>a<m>b<h>to=", True), ("to=", False)],
)
def test_a_reset_ends_what_was_begun(text: str, is_found: bool) -> None:
    made = finder(Opening(("<h>", "to="), (), between=None), resets=("<m>",))
    assert (found_in(made, text) is not None) == is_found


def test_where_the_text_is_split_changes_nothing() -> None:
    rng = random.Random(1)
    made = finder(tag("abab"), first("b", "a"), Opening(("ba", "c"), (), between=None), resets=("bb",))
    for _ in range(500):
        text = bytes(rng.choice(b"abc ") for _ in range(rng.randrange(16)))
        whole = made.feed(made.start, text)
        state, found, fed = made.start, Found(made.start), 0
        while fed < len(text) and found.opening is None:
            size = rng.randrange(1, 4)
            found = made.feed(state, text[fed : fed + size])
            state, fed = found.state, fed + size
        assert (found.state, found.opening) == (whole.state, whole.opening)
        if whole.opening is not None:
            assert found.rest + text[fed:] == whole.rest


def test_text_beside_openings_leads_back_to_the_base() -> None:
    made = finder(tag("<call>"), first("{"))
    assert made.feed(made.start, b"Hello").state == made.base
    assert made.feed(made.base, b"<cal").state != made.base
    assert made.feed(made.base, b"<cal!").state == made.base
