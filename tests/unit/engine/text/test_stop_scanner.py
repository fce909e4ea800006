"""Stop strings are found wherever the text is cut, and nothing of them is given out."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from orcinus.engine.text.stop_scanner import StopScanner
from tests.growth import assert_linear
from tests.unit.engine.text.cutting import cut, cuts, quick


def scan(stops: Sequence[str], pieces: Sequence[str], *, include: bool = False) -> tuple[list[str], str | None]:
    """All that was given out, piece by piece, and the stop string found."""
    scanner = StopScanner(stops, include_stop=include)
    given_out = []
    for piece in pieces:
        scanned = scanner.feed(piece)
        given_out.append(scanned.text)
        if scanned.stop is not None:
            return given_out, scanned.stop
    return [*given_out, scanner.flush()], None


def expected(stops: Sequence[str], text: str, *, include: bool = False) -> tuple[str, str | None]:
    """The definition: the stop string that is completed first, the longest of those completed together."""
    for end in range(1, len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            stop = max(completed, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


stop_strings = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), min_size=1, max_size=4, unique=True)


@quick
@given(stop_strings, st.text(alphabet="ab\n🐋", max_size=30), cuts, st.booleans())
def test_stop_string_is_found_wherever_the_text_is_cut(
    stops: list[str], text: str, at: list[int], include: bool
) -> None:
    pieces = [str(piece) for piece in cut(text, at)]
    given_out, stop = scan(stops, pieces, include=include)
    assert ("".join(given_out), stop) == expected(stops, text, include=include)


@quick
@given(stop_strings, st.text(alphabet="ab\n", max_size=20))
def test_no_part_of_a_stop_string_is_ever_given_out_and_nothing_else_is_held_back(stops: list[str], text: str) -> None:
    scanner = StopScanner(stops, include_stop=False)
    given_out = ""
    for end, character in enumerate(text, start=1):
        scanned = scanner.feed(character)
        given_out += scanned.text
        if scanned.stop is not None:
            return
        held = text[len(given_out) : end]
        longest = max(
            (n for stop in stops for n in range(len(stop)) if text[:end].endswith(stop[:n])),
            default=0,
        )
        assert len(held) == longest


@quick
@given(stop_strings, st.text(alphabet="ab\n", max_size=20), st.integers(0, 20))
def test_stop_string_completed_while_unarmed_is_text(stops: list[str], text: str, num_unarmed: int) -> None:
    scanner = StopScanner(stops, include_stop=False)
    given_out, found = "", None
    for position, character in enumerate(text):
        scanned = scanner.feed(character, is_armed=position >= num_unarmed)
        given_out += scanned.text
        if scanned.stop is not None:
            found = position
            break
    ends = [end for end in range(num_unarmed, len(text)) if any(text[: end + 1].endswith(stop) for stop in stops)]
    assert found == (ends[0] if ends else None)
    if found is None:
        assert given_out + scanner.flush() == text
    else:
        assert text.startswith(given_out)


def test_text_that_cannot_become_a_stop_string_flows_at_once() -> None:
    given_out, stop = scan(["STOP"], ["a S", "T", "x", "S", "TOP", "never"])
    assert given_out == ["a ", "", "STx", "", ""]
    assert stop == "STOP"


def test_of_stop_strings_completed_together_the_one_that_begins_first_counts() -> None:
    assert scan(["b", "ab"], ["xab"]) == (["x"], "ab")


def test_time_does_not_grow_with_the_length_of_a_stop_string_nearly_met_all_along() -> None:
    def scan_near_misses(length: int) -> None:
        scanner = StopScanner(["a" * (length - 1) + "b"] * 4, include_stop=False)
        for _ in range(length):
            scanner.feed("aaaa")

    assert_linear(scan_near_misses, 16_000)


@quick
@given(
    stop_strings, st.lists(st.tuples(st.text(alphabet="ab\n", max_size=4), st.booleans()), max_size=8), st.booleans()
)
def test_hidden_text_counts_and_does_not_go_out(
    stops: list[str], pieces: list[tuple[str, bool]], include: bool
) -> None:
    scanner, given_out, stop = StopScanner(stops, include_stop=include), "", None
    for piece, is_hidden in pieces:
        scanned = scanner.feed(piece, is_hidden=is_hidden)
        given_out, stop = given_out + scanned.text, scanned.stop
        if stop is not None:
            break
    else:
        given_out += scanner.flush()
    text = "".join(piece for piece, _ in pieces)
    is_shown = [not is_hidden for piece, is_hidden in pieces for _ in piece]
    whole, wanted_stop = expected(stops, text)
    shown = "".join(character for character, shows in zip(whole, is_shown, strict=False) if shows)
    assert (given_out, stop) == (shown + (wanted_stop or "" if include else ""), wanted_stop)
