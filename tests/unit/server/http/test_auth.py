"""API keys: what they guard, where they are sent, how they are compared, and when their file is read again."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from orcinus.config.settings import load_settings
from orcinus.server.errors import AuthenticationError
from orcinus.server.http.auth import KeyRing
from tests.unit.server.serving import Serving, error_of, serving

PAGES = {"/", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js", "/openapi.json"}
PUBLIC = {"/live", "/ready", "/health", "/metrics", *PAGES}


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


def test_keys_of_a_file_are_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("# staff\nold\n\n")
    keys = KeyRing(load_settings(api_key_file=str(file), api_key=("given",)))
    keys.check("Bearer old")
    keys.check("Bearer given")
    file.write_text("new # key\nother\n")
    os.utime(file, ns=(1, 1))
    keys.check("Bearer other")
    with pytest.raises(AuthenticationError):
        keys.check("Bearer old")
    keys.check("Bearer given")
    file.unlink()
    keys.check("Bearer other")
    assert "stay valid" in caplog.text


def test_a_file_without_keys_opens_to_nobody(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    keys = KeyRing(load_settings(api_key_file=str(file)))
    assert keys.is_needed
    for header in ("Bearer ", "Bearer # none yet", None):
        with pytest.raises(AuthenticationError):
            keys.check(header)
