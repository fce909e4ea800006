"""What is guessed of a name that is not known: what is near it, and nothing otherwise."""

import pytest

from orcinus.config.near_names import near_names

FLAGS = ["--block-size", "--ctx-size", "--max-model-len", "--max-num-seqs", "--port", "--root-path"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("--ctx-sise", "--ctx-size"),
        ("--CTX_SIZE", "--ctx-size"),
        ("--prot", "--port"),
        ("--model-len", "--max-model-len"),
        ("--max-seqs", "--max-num-seqs"),
        ("--rootpath", "--root-path"),
    ],
)
def test_a_slip_is_understood(name: str, near: str) -> None:
    assert near_names(name, FLAGS)[0] == near


@pytest.mark.parametrize("name", ["--zzzz", "--cache-dir", "--x", "--", "", "--size"])
def test_nothing_is_guessed_where_nothing_is_near(name: str) -> None:
    assert near_names(name, FLAGS) == []


def test_what_all_names_begin_with_makes_none_near() -> None:
    names = ["ORCINUS_PORT", "ORCINUS_HOST", "ORCINUS_DTYPE"]
    assert near_names("ORCINUS_PROT", names)[0] == "ORCINUS_PORT"
    assert near_names("ORCINUS_ZZZZ", names) == []
