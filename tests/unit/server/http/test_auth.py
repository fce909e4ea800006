"""API keys: what they guard, where they are sent, how they are compared, and when their file is read again."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orcinus.config.settings import SettingsError, load_settings
from orcinus.server.apis.page.answer import FILES
from orcinus.server.errors import AuthenticationError
from orcinus.server.http import auth
from orcinus.server.http.auth import KeyRing
from tests.unit.server.serving import Serving, error_of, serving

PAGES = {"/", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js", "/openapi.json"}
PUBLIC = {"/live", "/ready", "/health", "/metrics", *PAGES, *FILES}


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, api_key=("first", "zweiter-schlüssel")) as running:
        yield running


async def ask(served: Serving, path: str = "/v1/models", **headers: str) -> httpx.Response:
    return await served.client.get(path, headers=headers)


async def test_every_route_but_the_public_ones_is_guarded(guarded: Serving) -> None:
    paths = {route.path for route in guarded.app.routes if hasattr(route, "path")}
    assert {"/v1/completions", "/v1/messages", "/v1/models", "/tokenize", "/version", "/openapi.json", "/docs"} <= paths
    for path in paths | {"/v1/nothing", "/metrics/", "//metrics/live", "/v1/models/x"}:
        response = await ask(guarded, f"http://test{path}")
        if path in PUBLIC:
            assert response.status_code == 200
        else:
            assert response.status_code == 401
            assert "an API key is needed" in response.json()["error"]["message"]
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer first", "bearer first", "BEARER  first"])
async def test_a_valid_key_opens(guarded: Serving, header: str) -> None:
    assert (await ask(guarded, authorization=header)).status_code == 200


async def test_a_valid_key_opens_as_x_api_key_too(guarded: Serving) -> None:
    assert (await guarded.client.get("/v1/models", headers={"x-api-key": "first"})).status_code == 200


@pytest.mark.parametrize("key", ["", "Bearer first", "firs", "first2"])
async def test_any_other_x_api_key_does_not(guarded: Serving, key: str) -> None:
    response = await guarded.client.get("/v1/models", headers={"x-api-key": key})
    assert error_of(response, 401)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("authorization", "api_key", "status"),
    [
        ("Bearer first", "wrong", 200),
        ("Bearer wrong", "first", 200),
        ("Basic wrong", "first", 200),
        ("Bearer wrong", "wrong", 401),
        ("first", "Bearer first", 401),
    ],
)
async def test_of_two_headers_one_has_to_be_valid(
    guarded: Serving, authorization: str, api_key: str, status: int
) -> None:
    headers = {"authorization": authorization, "x-api-key": api_key}
    assert (await guarded.client.get("/v1/models", headers=headers)).status_code == status


async def test_two_x_api_key_headers_are_none(guarded: Serving) -> None:
    headers = [("x-api-key", "first"), ("x-api-key", "other")]
    error_of(await guarded.client.get("/v1/models", headers=headers), 401)


@pytest.mark.parametrize("header", ["", "first", "Bearer", "Bearer ", "Basic first", "Bearer firs", "Bearer first2"])
async def test_anything_else_does_not(guarded: Serving, header: str) -> None:
    error_of(await ask(guarded, authorization=header), 401)


async def test_two_authorization_headers_are_none(guarded: Serving) -> None:
    headers = [("authorization", "Bearer first"), ("authorization", "Bearer other")]
    error_of(await guarded.client.get("/v1/models", headers=headers), 401)


async def test_the_key_is_asked_for_before_the_body_is_read(guarded: Serving) -> None:
    was_read = False

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal was_read
        was_read = True
        yield b"{}"

    error_of(await guarded.client.post("/v1/completions", content=chunks()), 401)
    assert not was_read


async def test_the_host_header_opens_nothing(guarded: Serving) -> None:
    error_of(await ask(guarded, host="x/live"), 401)


def test_without_keys_none_is_needed(tmp_path: Path) -> None:
    assert not KeyRing(load_settings()).is_needed


def accepts(keys: KeyRing, key: str | bytes) -> bool:
    try:
        keys.check(b"Bearer " + (key.encode() if isinstance(key, str) else key))
    except AuthenticationError:
        return False
    return True


async def test_keys_of_a_file_are_read_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(auth, "WAIT_S", 30.0)
    file = tmp_path / "keys"
    file.write_text("# staff\nold\n\n")
    keys = KeyRing(load_settings(api_key_file=str(file), api_key=("given",)))
    assert accepts(keys, "old")
    assert accepts(keys, "given")
    file.write_text("new # key\nother\n")
    os.utime(file, ns=(1, 1))
    await keys.look()
    assert [accepts(keys, key) for key in ("other", "new # key", "old", "given")] == [True, True, False, True]
    file.unlink()
    for _ in range(3):
        await keys.look()
        assert accepts(keys, "other")
    assert caplog.text.count("stay valid") == 1
    file.write_text("bad\tkey\n")
    await keys.look()
    assert accepts(keys, "other")
    assert caplog.text.count("stay valid") == 2
    assert "the key in line 1 has" in caplog.text
    file.write_text("last\n")
    await keys.look()
    assert [accepts(keys, "last"), accepts(keys, "other")] == [True, False]


async def test_the_file_is_looked_at_in_a_thread_and_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    looks: list[int] = []
    read_stamp = KeyRing._read_stamp

    def noted(ring: KeyRing) -> Any:
        looks.append(threading.get_ident())
        return read_stamp(ring)

    async with serving(tmp_path, api_key_file=str(file)) as served:
        monkeypatch.setattr(KeyRing, "_read_stamp", noted)
        monkeypatch.setattr(auth, "LOOK_EVERY_S", 3600.0)
        for _ in range(5):
            assert (await ask(served, authorization="Bearer one")).status_code == 200
            assert (await ask(served, authorization="Bearer other")).status_code == 401
    assert len(looks) == 1
    assert looks[0] != threading.get_ident()


async def test_a_volume_that_hangs_holds_up_one_request_for_a_while_and_none_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    keys = KeyRing(load_settings(api_key_file=str(file)))
    goes_on = threading.Event()
    monkeypatch.setattr(auth, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(auth, "WAIT_S", 0.05)
    monkeypatch.setattr(KeyRing, "_read_stamp", lambda ring: goes_on.wait(60))
    await keys.look()
    waited: list[float | None] = []
    wait = asyncio.wait

    async def noted(tasks: Any, **limits: Any) -> Any:
        waited.append(limits["timeout"])
        return await wait(tasks, **limits)

    monkeypatch.setattr(asyncio, "wait", noted)
    for _ in range(100):
        await keys.look()
        assert accepts(keys, "one")
    assert waited == [0] * 100
    goes_on.set()
    assert keys._looking is not None
    await wait({keys._looking})


@pytest.mark.parametrize("key", ["schlüssel", "à", "ключ", "鍵", "with space", "ÿ\x85\xa0x"])
async def test_a_key_is_the_bytes_that_are_sent(tmp_path: Path, key: str) -> None:
    """UTF-8, as curl sends it; a key of Latin letters also as browsers do."""
    async with serving(tmp_path, api_key=(key, "other")) as served:
        sent = [key.encode()]
        if all(ord(letter) < 256 for letter in key):
            sent.append(key.encode("latin-1"))
        for value in sent:
            for headers in ([(b"authorization", b"Bearer " + value)], [(b"x-api-key", value)]):
                assert (await served.client.get("/v1/models", headers=headers)).status_code == 200
        wrong = [(b"authorization", b"Bearer " + key.encode("utf-16-le"))]
        assert (await served.client.get("/v1/models", headers=wrong)).status_code == 401
    ring = KeyRing(load_settings(api_key=(key,)))
    assert len({ring.check(None, value) for value in sent}) == 1


@pytest.mark.parametrize("key", ["secret\nb", "secret\tb", "secret\x00", "secret\x7f", " secret", "secret "])
def test_a_key_that_cannot_be_sent_is_refused_at_start_and_not_shown(tmp_path: Path, key: str) -> None:
    with pytest.raises(SettingsError, match="key 2 ") as refusal:
        load_settings(api_key=("good", key))
    assert "secret" not in str(refusal.value)


def test_a_key_file_may_begin_with_a_mark_of_utf_8_and_is_no_other_text(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    keys = KeyRing(load_settings(api_key_file=str(file)))
    assert [accepts(keys, key) for key in ("first", "second", "\ufefffirst")] == [True, True, False]
    file.write_text("first\n", encoding="utf-16")
    with pytest.raises(SettingsError, match="keys: it is not UTF-8 text but UTF-16"):
        KeyRing(load_settings(api_key_file=str(file)))


def test_a_key_file_with_such_a_key_is_refused_at_start_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("good\n# comment\nsec\tret\n")
    with pytest.raises(SettingsError, match="keys: the key in line 3 has a control character") as refusal:
        KeyRing(load_settings(api_key_file=str(file)))
    assert "sec" not in str(refusal.value)


def test_a_file_without_keys_opens_to_nobody(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    keys = KeyRing(load_settings(api_key_file=str(file)))
    assert keys.is_needed
    for header in (b"Bearer ", b"Bearer # none yet", None):
        with pytest.raises(AuthenticationError):
            keys.check(header)
