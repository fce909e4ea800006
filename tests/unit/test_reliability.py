"""Every promise of the reliability page is held by a test, and every test that it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()
ROWS = re.findall(r"^\| (?!---|When )(.+?) \| (.+?) \| (.+?) \|$", PAGE, flags=re.MULTILINE)
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@cache
def functions_of(name: str) -> frozenset[str]:
    tree = ast.parse((ROOT / name).read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions)


def test_the_page_has_all_of_its_rows() -> None:
    assert len(ROWS) == len(re.findall(r"^\| (?!---|When )", PAGE, flags=re.MULTILINE))
    assert len(ROWS) >= 30


@pytest.mark.parametrize(("fault", "tests"), [(row[0], row[2]) for row in ROWS])
def test_a_promise_names_tests_and_nothing_else(fault: str, tests: str) -> None:
    assert re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`(?:, `tests/[\w/]+\.py::test_\w+`)*", tests), fault


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_the_page_names_exists(path: str, name: str) -> None:
    assert name in functions_of(path)
