"""The rows of the conformance run, one by one, and the page that the run would write."""

from collections.abc import Iterator

import pytest

from tests.conformance.__main__ import main
from tests.conformance.api import Api
from tests.conformance.contract import all_rows
from tests.conformance.registry import Outcome, Row
from tests.conformance.report import REPORT, render, sdk_of
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def api(server: ServerProcess) -> Iterator[Api]:
    with Api(server.url) as api:
        yield api


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: row.name)
def test_the_server_does_what_the_row_says(api: Api, row: Row) -> None:
    row.check(api)


def test_the_page_is_what_the_run_would_write() -> None:
    """With every row passed, as the test above sees to; the SDK's version is that of whoever ran it last."""
    page = REPORT.read_text(encoding="utf-8")
    assert page == render([Outcome(row) for row in all_rows()], sdk_of(page)), "out of date, run: make conformance"


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("-h", 0), ("--rows", 2), ("no-such-row", 2)])
def test_help_and_mistakes_start_no_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str, status: int
) -> None:
    def start(*_: object) -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr("tests.conformance.__main__.ServerProcess", start)
    with pytest.raises(SystemExit) as caught:
        main([argument])
    assert caught.value.code == status
    told = capsys.readouterr()
    assert "usage: python -m tests.conformance" in (told.err if status else told.out)
