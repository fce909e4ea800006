"""The tables of the README, made from the declarations."""

from pathlib import Path

import pytest

from orcinus.config.settings import Settings, SettingsError
from orcinus.config.sources import env_name, flag_name
from orcinus.server.reference import main, rewrite, settings_table, table

SECTIONS = {"one": lambda: "new \\1 text"}


def test_every_setting_has_a_row_with_its_three_names() -> None:
    rows = {row.split("|")[1].strip(): row for row in settings_table().splitlines()[2:]}
    assert set(rows) == {f"`{name}`" for name in Settings.model_fields}
    for name in Settings.model_fields:
        assert f"`{env_name(name)}`" in rows[f"`{name}`"]
    assert f"`{flag_name('port')}`" in rows["`port`"]
    assert "`8000`" in rows["`port`"]
    assert "`--no-enable-prefix-caching`" in rows["`enable_prefix_caching`"]
    assert "`16MiB`" in rows["`max_body_bytes`"]


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(("a", "b"), [("1|2", "3")]).splitlines()[-1] == r"| 1\|2 | 3 |"


def test_only_what_stands_between_the_markers_is_rewritten() -> None:
    text = "before\n<!-- one:begin -->\nold\nlines\n<!-- one:end -->\nafter\n"
    expected = "before\n<!-- one:begin -->\nnew \\1 text\n<!-- one:end -->\nafter\n"
    assert rewrite(text, SECTIONS) == expected
    assert rewrite(expected, SECTIONS) == expected


@pytest.mark.parametrize("text", ["nothing", "<!-- one:begin -->\n", "<!-- one:begin -->\n<!-- one:end -->\n" * 2])
def test_a_section_must_be_there_once(text: str) -> None:
    with pytest.raises(SettingsError, match="expected one section <!-- one:begin -->"):
        rewrite(text, SECTIONS)


def test_check_fails_until_the_file_is_rewritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from orcinus.server.reference import SECTIONS as ALL

    readme = tmp_path / "README.md"
    readme.write_text("".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in ALL))
    before = readme.read_text()
    assert main([str(readme), "--check"]) == 1
    assert readme.read_text() == before
    assert "is out of date" in capsys.readouterr().err
    assert main([str(readme)]) == 0
    assert main([str(readme), "--check"]) == 0
