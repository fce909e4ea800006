"""The file of usage: counts that add up, what is asked of it, and files that are not what they should be."""

import os
import sqlite3
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orcinus.server.errors import UsageUnavailableError
from orcinus.server.usage.store import Usage, UsageKey, add_usage, read_usage

DAY, NEXT = "2027-01-30", "2027-01-31"
ONE = Usage(1, 10, 4, 5, 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    add_usage(path, {UsageKey(DAY, "a", "m"): ONE, UsageKey(DAY, "b", "m"): ONE})
    add_usage(path, {UsageKey(DAY, "a", "m"): Usage(2, 1, 1, 1, 1), UsageKey(NEXT, "a", "n"): ONE})
    return path


def test_counts_add_up_and_are_summed_by_what_is_asked(file: Path) -> None:
    assert read_usage(file, ["day", "key", "model"]) == {
        (DAY, "a", "m"): Usage(3, 11, 5, 6, 1),
        (DAY, "b", "m"): ONE,
        (NEXT, "a", "n"): ONE,
    }
    assert read_usage(file, ["key"]) == {("a",): Usage(4, 21, 9, 11, 1), ("b",): ONE}
    assert read_usage(file, ["model", "day"], since=NEXT) == {("n", NEXT): ONE}
    assert [*read_usage(file, ["key"], limit=1)] == [("a",)]


def test_a_file_that_is_not_there_is_empty_and_is_not_made_by_who_reads(tmp_path: Path) -> None:
    assert read_usage(tmp_path / "none.db", ["key"]) == {}
    assert not [*tmp_path.iterdir()]
    (tmp_path / "empty.db").touch()
    assert read_usage(tmp_path / "empty.db", ["key"]) == {}


def test_a_file_is_read_by_who_may_not_write_beside_it() -> None:
    with tempfile.TemporaryDirectory() as name:  # in a folder that everybody may enter
        path = Path(name) / "usage.db"
        add_usage(path, {UsageKey(DAY, "a", "m"): ONE})
        path.chmod(0o444)
        path.parent.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:  # who may write everywhere
                os.seteuid(65534)
            assert read_usage(path, ["key"]) == {("a",): ONE}
        finally:
            os.seteuid(user)
            path.parent.chmod(0o755)


def test_of_a_batch_that_cannot_be_written_nothing_is(file: Path) -> None:
    broken = {UsageKey(DAY, "a", "m"): ONE, UsageKey(DAY, None, "m"): ONE}  # type: ignore[arg-type]
    before = read_usage(file, ["key"])
    with pytest.raises(UsageUnavailableError, match="NOT NULL"):
        add_usage(file, broken)
    assert read_usage(file, ["key"]) == before


@pytest.mark.parametrize("kind", ["no database", "another database", "a newer version"])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "usage.db"
    if kind == "no database":
        path.write_text("key,requests\n" * 100)
    elif kind == "another database":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE usage (mine TEXT)")
    else:
        add_usage(path, {UsageKey(DAY, "a", "m"): ONE})
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 2")
    messages = {
        "no database": "file is not a database",
        "another database": "a database of something else",
        "a newer version": "is of version 2, and this Orcinus knows 1",
    }
    for act in (lambda: add_usage(path, {UsageKey(DAY, "a", "m"): ONE}), lambda: read_usage(path, ["key"])):
        with pytest.raises(UsageUnavailableError, match=messages[kind]):
            act()
    if kind == "no database":
        assert path.read_text().startswith("key,requests\n")


def test_a_file_that_is_begun_while_it_is_read_is_empty_or_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, connect = tmp_path / "usage.db", sqlite3.connect
    with closing(connect(file)) as database:
        database.execute("PRAGMA journal_mode = WAL")

    class Meanwhile(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            """Have another connection write the first counts between two reads."""
            if "COUNT(*)" in sql:
                monkeypatch.setattr(sqlite3, "connect", connect)
                add_usage(file, {UsageKey("2026-11-30", "a", "m"): Usage(1, 2, 3, 4, 5)})
            return super().execute(sql, *args)

    monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Meanwhile))
    assert read_usage(file, ["key"]) == {}
    assert read_usage(file, ["key"]) == {("a",): Usage(1, 2, 3, 4, 5)}
