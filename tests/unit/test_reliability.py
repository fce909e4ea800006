"""Every promise of the reliability page is held by a test, and every test that it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

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


def test_a_promise_names_tests_and_nothing_else() -> None:
    names = re.compile(r"`tests/[\w/]+\.py::test_\w+`(?:, `tests/[\w/]+\.py::test_\w+`)*")
    assert not [fault for fault, _, tests in ROWS if not names.fullmatch(tests)]


def test_every_test_that_the_page_names_exists() -> None:
    assert len(NAMED) > len(ROWS)
    assert not [f"{path}::{name}" for path, name in NAMED if name not in functions_of(path)]
