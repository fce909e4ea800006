"""Runs the rows and writes what came of them as Markdown, the same at every run that finds the same."""

import traceback
from collections.abc import Sequence
from pathlib import Path

import openai

from orcinus.config.version import VERSION
from tests.conformance.api import Api
from tests.conformance.registry import Outcome, Row
from tests.server_process import ROOT

REPORT = ROOT / "docs" / "conformance.md"

_HEAD = """# Conformance

{count} rows, {passed} passed.

Orcinus {version} on its demo model, against the HTTP contract that clients of the OpenAI API expect. Every answer is
also validated strictly against the types of the official `openai` SDK {sdk}: no value of another type, no missing
field, no field beyond the SDK's but the documented extensions; every stream is read by a strict parser.
`make conformance` repeats the run and writes this page; `tests/conformance/` has the rows. The rows of `parameters`
come from the declarations that [the table of parameters](reference/parameters.md) is made from.
"""


def run(row: Row, api: Api) -> Outcome:
    try:
        row.check(api)
    except Exception:
        return Outcome(row, traceback.format_exc())
    return Outcome(row)


def render(outcomes: Sequence[Outcome], sdk: str = openai.VERSION) -> str:
    """The whole page."""
    passed = sum(not outcome.problem for outcome in outcomes)
    lines = [_HEAD.format(count=len(outcomes), passed=passed, version=VERSION, sdk=sdk)]
    lines += ["| # | Row | What is checked | Result |", "| ---: | --- | --- | --- |"]
    for number, outcome in enumerate(outcomes, start=1):
        text = outcome.row.text.replace("|", "\\|")
        lines.append(f"| {number} | {outcome.row.name} | {text} | {'FAILED' if outcome.problem else 'passed'} |")
    return "\n".join(lines) + "\n"


def sdk_of(page: str) -> str:
    """The SDK's version that a page names."""
    return page.partition("`openai` SDK ")[2].partition(":")[0]


def write(outcomes: Sequence[Outcome], path: Path = REPORT) -> None:
    path.write_text(render(outcomes), encoding="utf-8")
