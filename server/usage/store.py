"""The SQLite file of usage: one row for each day, key and model, whose counts only grow.

Opened for each batch and closed after it, so that a file that was moved away or put back is noticed. In WAL mode: a
process that is killed leaves a whole file, and readers are never in the way of a writer. Everything here blocks.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from orcinus.server.errors import UsageUnavailableError

_APPLICATION_ID = 0x4F726361  # "Orca", in the file's header
_SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 5.0  # while another process writes

GROUPS = ("day", "key", "model")


class UsageKey(NamedTuple):
    """Whose usage, of which model, on which day (of UTC, as 2027-01-31)."""

    day: str
    key: str
    model: str


class Usage(NamedTuple):
    """Counts of requests that have ended. `errors` are those that ended by an error or by their deadline."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    errors: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """Return the sum of both."""
        return Usage(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


Counts = Mapping[UsageKey, Usage]
Groups = dict[tuple[str, ...], Usage]

_CREATE = f"""
CREATE TABLE usage (
    day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    {", ".join(f"{name} INTEGER NOT NULL" for name in Usage._fields)},
    PRIMARY KEY (day, key, model)
) WITHOUT ROWID
"""
_ADD = (
    f"INSERT INTO usage VALUES ({', '.join('?' * (len(GROUPS) + len(Usage._fields)))})"  # noqa: S608 (our own names)
    f" ON CONFLICT DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in Usage._fields)}"
)


def add_usage(path: Path, counts: Counts) -> None:
    """Add counts to those in the file, all of them or none. Raises `UsageUnavailableError`."""
    with _naming(path), closing(sqlite3.connect(path, _BUSY_TIMEOUT_S, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN IMMEDIATE")
        try:
            if not _is_ours(database, path):
                database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                database.execute(_CREATE)
            database.executemany(_ADD, [(*key, *usage) for key, usage in counts.items()])
            database.execute("COMMIT")
        finally:
            if database.in_transaction:
                database.execute("ROLLBACK")


def read_usage(path: Path, by: Sequence[str], since: str = "", limit: int | None = None) -> Groups:
    """Return the sums over rows from the day `since` on that are alike in `by`, some of `GROUPS`, in their order.

    At most `limit` of them. A file that is not there is an empty one. Raises `UsageUnavailableError`.
    """
    if not path.exists():
        return {}
    assert by, "there is a default"
    assert set(by) <= set(GROUPS), "checked where it comes from"
    columns = ", ".join(by)
    sums = ", ".join(f"SUM({name})" for name in Usage._fields)
    with _naming(path), closing(_open_to_read(path)) as database:
        database.execute("BEGIN")  # of what is read one after the other, nothing is written in between
        if not _is_ours(database, path):
            return {}
        rows = database.execute(
            f"SELECT {columns}, {sums} FROM usage WHERE day >= ? GROUP BY {columns} ORDER BY {columns} LIMIT ?",  # noqa: S608
            (since, -1 if limit is None else limit),
        ).fetchall()
    return {tuple(row[: len(by)]): Usage(*row[len(by) :]) for row in rows}


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that changes nothing, not even beside a file whose folder may not be written."""
    address = path.resolve().as_uri()
    database = sqlite3.connect(f"{address}?mode=ro", _BUSY_TIMEOUT_S, uri=True)
    try:
        database.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        database.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        database = sqlite3.connect(f"{address}?immutable=1", uri=True)
    return database


def _is_ours(database: sqlite3.Connection, path: Path) -> bool:
    """Return whether the file has our table, and False for an empty one. Raises `UsageUnavailableError` for another."""
    (application_id,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (num_tables,) = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if not num_tables:
        return False
    if application_id != _APPLICATION_ID:
        raise UsageUnavailableError(f"{path} is a database of something else")
    if version != _SCHEMA_VERSION:
        raise UsageUnavailableError(f"{path} is of version {version}, and this Orcinus knows {_SCHEMA_VERSION}")
    return True


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise `UsageUnavailableError`, which names the file, for what SQLite and the system raise in the block."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise UsageUnavailableError(f"the usage file {path}: {error}") from error
