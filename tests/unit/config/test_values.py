"""How sizes are read and shown."""

import pytest

from orcinus.config.values import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 * 2**30),
        ("4Gi", 4 * 2**30),
        ("512MiB", 512 * 2**20),
        ("2G", 2 * 10**9),
        ("2GB", 2 * 10**9),
        ("1.5 kib", 1536),
        ("100b", 100),
        ("100", 100),
        (100, 100),
    ],
)
def test_sizes_have_binary_and_decimal_units(text: object, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["4 giga", "-1G", "G", "", "1e9", None])
def test_what_is_no_size_is_left_for_the_type_check(text: object) -> None:
    assert parse_bytes(text) is text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (16 * 2**20, "16 MiB"), (2**43, "8 TiB")],
)
def test_sizes_are_shown_in_the_unit_that_fits(count: int, text: str) -> None:
    assert format_bytes(count) == text
