"""What `make test` keeps: a quick test of each kind of promise, so that a change sees in minutes what it breaks."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.effort import PROFILES, scaled, slow_but_for

ROOT = Path(__file__).parents[2]
KINDS = {
    "the tokens of transformers": "tests/integration/test_truth.py::test_batched_greedy_output_equals_generate_alone",
    "the contract": "tests/conformance/test_conformance.py::test_the_server_does_what_the_row_says",
    "the bytes of streams": "tests/integration/test_sse_bytes.py::test_a_chat_streams_what_it_answers",
    "a killed engine": "tests/integration/test_engine_restarts.py::"
    "test_an_engine_killed_again_and_again_makes_no_difference_to_any_answer",
    "an end": "tests/integration/test_shutdown.py::test_a_signal_lets_streams_plain_requests_and_the_queue_finish",
    "texts of a schema": "tests/integration/test_structured_engine.py::test_samples_of_a_schema_are_valid",
    "the deterministic mode": "tests/integration/test_determinism.py::"
    "test_in_float32_every_family_answers_alike_alone_and_in_any_crowd",
}
# Promises of docs/reliability.md that only slow tests hold.
ONLY_SLOW = {"many large requests come at once", "all of this happens at once"}


def is_slow(node: ast.AST) -> bool:
    return "pytest.mark.slow" in ast.unparse(node)


@cache
def quick_tests_of(path: str) -> frozenset[str]:
    """The functions of a file of which at least some cases are quick."""
    body = ast.parse((ROOT / path).read_text()).body
    marks = [node for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"]
    if any(is_slow(node.value) for node in marks):
        return frozenset()
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    # A mark of one case stands within `parametrize`.
    whole = {
        f.name: [d for d in f.decorator_list if not ast.unparse(d).startswith("pytest.mark.param")] for f in functions
    }
    return frozenset(name for name, decorators in whole.items() if not any(map(is_slow, decorators)))


def is_quick(test: str) -> bool:
    path, _, name = test.partition("::")
    return name in quick_tests_of(path)


def test_every_kind_has_a_quick_test() -> None:
    assert not [kind for kind, test in KINDS.items() if not is_quick(test)]


def test_every_promise_has_a_quick_test_but_for_a_few() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    rows = re.findall(r"^\| (?!---|When )(.+?) \| .+? \| (.+?) \|$", page, flags=re.MULTILINE)
    slow = {promise for promise, tests in rows if not any(map(is_quick, re.findall(r"`(tests/\S+::\w+)`", tests)))}
    assert slow == ONLY_SLOW


def test_what_needs_another_environment_or_a_compiler_is_slow() -> None:
    apart = [
        path
        for folder in ("clients", "other_machines", "sanitizers")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
    ]
    assert len(apart) >= 3
    names = [path.relative_to(ROOT).as_posix() for path in apart]
    assert not [name for name in names if any(test.startswith("test_") for test in quick_tests_of(name))]


def test_a_slow_test_is_seen_however_it_is_marked() -> None:
    assert not is_quick("tests/chaos/test_chaos_short.py::has_frozen")
    assert not is_quick("tests/integration/test_shutdown.py::test_an_engine_that_is_frozen_does_not_hold_the_end_up")
    assert is_quick("tests/unit/test_quick_tests.py::is_quick")


def test_of_some_values_the_quick_ones_have_no_mark() -> None:
    quick, slow = slow_but_for(["a", "b"], "a")
    assert quick == "a"
    assert slow.values == ("b",)
    assert [mark.name for mark in slow.marks] == ["slow"]
    with pytest.raises(ValueError, match="'c'"):
        slow_but_for(["a", "b"], "c")


def test_numbers_are_scaled_by_the_profile_and_never_to_nothing() -> None:
    share = scaled(1000) / 1000
    assert share in {examples / PROFILES["thorough"] for examples in PROFILES.values()}
    assert scaled(1) == 1
