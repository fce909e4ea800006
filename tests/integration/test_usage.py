"""What named keys use is there after the server was killed, and in `orcinus usage` beside one that runs."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server_process import LIGHT, ROOT, ServerProcess, until

pytestmark = pytest.mark.slow

KEYS = "keys:\n- {name: batch, key: one}\n- {name: boss, key: two, admin: true}\n"


def usage_of(file: Path) -> dict[str, Any]:
    """What `orcinus usage` shows, by key."""
    command = [sys.executable, "-m", "orcinus.server.cli", "usage", "--usage-db", str(file), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return {row["key"]: row for row in json.loads(done.stdout)["data"]} if done.returncode == 0 else {}


def complete(server: ServerProcess, key: str) -> None:
    body = {"prompt": "abc", "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers={"x-api-key": key}, timeout=60)
    assert answer.status_code == 200, answer.text


def test_usage_outlives_a_server_that_is_killed_and_grows_under_the_next(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    flags = ("--api-key-file", str(tmp_path / "keys"), "--usage-db", str(tmp_path / "usage.db"))
    first = ServerProcess(*flags, module=LIGHT)
    try:
        for _ in range(3):
            complete(first, "one")
        until(lambda: usage_of(tmp_path / "usage.db").get("batch", {}).get("requests") == 3 or None, "nothing was kept")
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(60)
    finally:
        first.close()
    second = ServerProcess(*flags, module=LIGHT)
    try:
        complete(second, "one")
        complete(second, "two")
        answer = httpx.get(f"{second.url}/v1/usage", headers={"x-api-key": "two"}, timeout=60).json()
        assert {row["key"]: row["requests"] for row in answer["data"]} == {"batch": 4, "boss": 1}
        complete(second, "two")
    finally:
        second.close()
    rows = usage_of(tmp_path / "usage.db")
    assert (rows["boss"]["requests"], rows["boss"]["generated_tokens"]) == (2, 8), "a server that ends writes the rest"
