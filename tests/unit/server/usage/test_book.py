"""What is counted, when it is written, and what becomes of it where it cannot be."""

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.outputs import RequestUsage
from orcinus.server.errors import UsageUnavailableError
from orcinus.server.usage import book as module
from orcinus.server.usage.book import UsageBook
from orcinus.server.usage.store import Usage, UsageKey, read_usage
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import answer_of, serving, until


def used(client: str = "name:a", adapter: str | None = None, *, is_failed: bool = False) -> RequestUsage:
    return RequestUsage(
        client=client,
        adapter=adapter,
        num_prompt_tokens=10,
        num_cached_tokens=4,
        num_output_tokens=5,
        is_failed=is_failed,
    )


async def test_requests_of_named_keys_are_counted_by_model_and_are_in_the_file_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.01)
    book = UsageBook(tmp_path / "usage.db", "m")
    keeping = asyncio.create_task(book.keep())
    for usage in (used(), used(is_failed=True), used(adapter="tuned"), used("0123456789abcdef"), used("")):
        book.add(usage)
    expected = {("a", "m"): Usage(2, 20, 8, 10, 1), ("a", "tuned"): Usage(1, 10, 4, 5, 0)}
    await until(lambda: read_usage(tmp_path / "usage.db", ["key", "model"]) == expected)
    monkeypatch.setattr(module, "WRITE_EVERY_S", 3600.0)
    book.add(used("name:b"))
    assert (await book.read(["key"], "", 10))[("b",)] == Usage(1, 10, 4, 5, 0), "what is asked for is whole"
    book.add(used("name:c"))
    await book.close(keeping)
    assert keeping.done()
    assert [*read_usage(tmp_path / "usage.db", ["key"])] == [("a",), ("b",), ("c",)]


async def test_what_a_full_disk_refuses_is_kept_and_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect, max_pages = sqlite3.connect, [1]

    def on_a_small_disk(*args: Any, **options: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*args, **options)
        database.execute(f"PRAGMA max_page_count = {max_pages[0]}")
        return database

    monkeypatch.setattr(sqlite3, "connect", on_a_small_disk)
    book = UsageBook(tmp_path / "usage.db", "m")
    for number in range(3):
        book.add(used())
        assert (await book.read(["key"], "", 10)) == {
            ("a",): Usage(1 + number, 10 + 10 * number, 4 + 4 * number, 5 + 5 * number, 0)
        }
    assert caplog.text.count("database or disk is full") == 1
    max_pages[0] = 1000
    book.add(used())
    await book.read(["key"], "", 10)
    assert read_usage(tmp_path / "usage.db", ["key"]) == {("a",): Usage(4, 40, 16, 20, 0)}


async def test_a_broken_file_costs_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "usage.db").write_bytes(b"this is no database " * 500)
    (tmp_path / "keys").write_text("keys:\n- {name: a, key: one, admin: true}\n")
    settings: dict[str, Any] = {"api_key_file": str(tmp_path / "keys"), "usage_db": str(tmp_path / "usage.db")}
    async with serving(tmp_path, FakeExecutor(says("Hello")), **settings) as served:
        served.client.headers["authorization"] = "Bearer one"
        for _ in range(3):
            await served.complete(max_tokens=2)
        refused = await served.client.get("/v1/usage")
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "usage_unavailable")
        assert "file is not a database" in refused.json()["error"]["message"]
        await served.complete(max_tokens=2)
        (tmp_path / "usage.db").unlink()
        table = answer_of(await served.client.get("/v1/usage"))
        assert [row["requests"] for row in table["data"]] == [4], "what was counted meanwhile is there"
    assert caplog.text.count("usage is not written") == 1


async def test_the_loop_goes_on_while_the_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(module, "add_usage", lambda path, counts: goes_on.wait(60))
    monkeypatch.setattr(module, "_READ_WITHIN_S", 0.01)
    book = UsageBook(tmp_path / "usage.db", "m")
    book.add(used())
    with pytest.raises(UsageUnavailableError, match="is not read in time"):
        await book.read(["key"], "", 10)
    book.add(used())
    assert list(book._waiting.values()) == [Usage(1, 10, 4, 5, 0)], "and what comes is counted"
    goes_on.set()
    assert book._batch is not None
    await book._batch


async def test_there_is_a_bound_on_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    book = UsageBook(tmp_path / "usage.db", "m")
    for name in ("a", "b", "c", "a"):
        book.add(used(f"name:{name}"))
    assert {key.key: usage.requests for key, usage in book._waiting.items()} == {"a": 2, "b": 1}
    assert all(isinstance(key, UsageKey) for key in book._waiting)
