"""The pages of docs/reference, made from the declarations."""

from pathlib import Path

import pytest

from orcinus.config.settings import GROUPS, Settings, SettingsError
from orcinus.config.sources import env_name, flag_name
from orcinus.server.metrics import METRICS
from orcinus.server.reference import PAGES, main, metrics_table, parameters_tables, rewrite, settings_tables, table
from orcinus.server.requests.parameters import IGNORED, REFUSED


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of every table, headers left out."""
    lines = text.splitlines()
    headers = {i - 1 for i, line in enumerate(lines) if line.startswith("| ---")}
    rows = [line for i, line in enumerate(lines) if line.startswith("| ") and i not in headers]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows if not row.startswith("| ---")]


def test_every_setting_has_a_row_with_its_flag_and_its_variable() -> None:
    rows = {row[0].partition("<br>")[2].strip("`"): row for row in rows_of(settings_tables())}
    assert set(rows) == {env_name(name) for name in Settings.model_fields}
    assert rows["ORCINUS_PORT"][0].startswith(f"`{flag_name('port')} PORT`")
    assert rows["ORCINUS_PORT"][1] == "`8000`"
    assert rows["ORCINUS_ENABLE_PREFIX_CACHING"][0].startswith("`--no-enable-prefix-caching`")
    assert rows["ORCINUS_DETERMINISTIC"][0].startswith("`--deterministic`")
    assert rows["ORCINUS_MAX_BODY_BYTES"][1] == "`16MiB`"
    assert rows["ORCINUS_DEVICE"][2].endswith("Allowed: one of auto, cpu, cuda.")


def test_settings_stand_in_the_groups_of_the_help() -> None:
    headings = [line.removeprefix("## ") for line in settings_tables().splitlines() if line.startswith("## ")]
    assert headings == list(GROUPS)


def test_every_metric_has_a_row_with_its_labels() -> None:
    names = [row[0].strip("`") for row in rows_of(metrics_table())]
    assert [name.partition("{")[0] for name in names] == [spec.name for spec in METRICS]
    assert "orcinus_http_requests_total{route,method,status}" in names


def test_every_parameter_has_a_row_under_its_kind_of_support() -> None:
    sections = dict(part.split("\n", 1) for part in parameters_tables().split("## ")[1:])
    names = {title: {row[0].strip("`") for row in rows_of(section)} for title, section in sections.items()}
    assert names["Accepted without effect"] == set(IGNORED)
    assert names["Refused with a 400"] == set(REFUSED)
    places = {row[0]: row[1] for row in rows_of(sections["Supported"])}
    assert places["`model`"] == "all"
    assert places["`temperature`"] == "completions, chat, responses, messages"
    assert places["`n`"] == "completions, chat"


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(("a", "b"), [("1|2", "3")]).splitlines()[-1] == r"| 1\|2 | 3 |"


def test_only_what_stands_between_the_markers_is_rewritten() -> None:
    text = "before\n<!-- one:begin -->\nold\nlines\n<!-- one:end -->\nafter\n"
    expected = "before\n<!-- one:begin -->\nnew \\1 text\n<!-- one:end -->\nafter\n"
    assert rewrite(text, "one", "new \\1 text") == expected
    assert rewrite(expected, "one", "new \\1 text") == expected


@pytest.mark.parametrize("text", ["nothing", "<!-- one:begin -->\n", "<!-- one:begin -->\n<!-- one:end -->\n" * 2])
def test_the_markers_must_be_there_once(text: str) -> None:
    with pytest.raises(SettingsError, match="expected one part <!-- one:begin -->"):
        rewrite(text, "one", "new")


def test_check_fails_until_every_page_is_rewritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [tmp_path / f"{name}.md" for name in PAGES]
    for page in pages:
        page.write_text(f"<!-- {page.stem}:begin -->\n<!-- {page.stem}:end -->\n")
    before = [page.read_text() for page in pages]
    assert main([str(tmp_path), "--check"]) == 1
    assert [page.read_text() for page in pages] == before
    complaints = capsys.readouterr().err
    assert all(f"{page} is out of date" in complaints for page in pages)
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
