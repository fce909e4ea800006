"""`orcinus usage`: its table, its JSON, and what is said where there is nothing to show."""

import json
from pathlib import Path

import pytest

from orcinus.server.cli import main
from orcinus.server.usage.store import Usage, UsageKey, add_usage


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    usage = Usage(2, 12_000, 40, 500, 1)
    add_usage(path, {UsageKey(day, key, "m"): usage for day in ("2027-01-30", "2027-01-31") for key in ("a", "batch")})
    return path


def test_a_table_has_a_line_for_each_and_their_sum(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--usage-db", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "key    requests  prompt tokens  cached tokens  generated tokens  errors",
        "a             4         24,000             80             1,000       2",
        "batch         4         24,000             80             1,000       2",
        "total         8         48,000            160             2,000       4",
    ]


def test_json_is_what_the_endpoint_answers(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCINUS_USAGE_DB", str(file))
    assert main(["usage", "--by", "day,model", "--since", "2027-01-31", "--json"]) == 0
    counts = {"requests": 4, "prompt_tokens": 24_000, "cached_tokens": 80, "generated_tokens": 1000, "errors": 2}
    assert json.loads(capsys.readouterr().out) == {
        "object": "list",
        "by": ["day", "model"],
        "data": [{"day": "2027-01-31", "model": "m", **counts}],
    }


@pytest.mark.parametrize(
    ("argv", "message", "code"),
    [
        ([], "which file? give --usage-db FILE, as to the server", 2),
        (["--usage-db", "none.db"], "there is no none.db: a server with --usage-db makes it", 2),
        (["--usage-db", "text.db"], "the usage file text.db: file is not a database", 1),
        (["--usage-db", "text.db", "--by", "week"], "--by must be one or more of day, key, model", 2),
        (["--usage-db", "text.db", "--since", "1"], "--since must be a day such as 2027-01-31, got '1'", 2),
    ],
)
def test_what_is_wrong_is_one_line(
    argv: list[str],
    message: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.db").write_text("no database" * 100)
    assert main(["usage", *argv]) == code
    assert f"orcinus usage: {message}" in capsys.readouterr().err
