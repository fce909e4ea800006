"""Which methods a path has, what is said to others, and what of a path that does not exist."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orcinus.server.operations import OPERATIONS, PageOperation
from tests.unit.server.http.test_connections import connect
from tests.unit.server.serving import Serving, answer_of, error_of, in_one_loop, listening, serving, user

GETTABLE = [
    operation.path
    for operation in OPERATIONS.without_admin()
    if "GET" in operation.methods
    and "{" not in operation.path
    and not (isinstance(operation, PageOperation) and operation.is_endless)
]
KEY = {"authorization": "Bearer secret"}


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, api_key=("secret",)) as running:
        yield running


@in_one_loop
@pytest.mark.parametrize("path", [*GETTABLE, "/v1/models/fake-model"])
async def test_head_is_get_without_the_body(lasting: Serving, path: str) -> None:
    head, get = await lasting.client.head(path), await lasting.client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    own = {"date", "x-request-id", "content-length"} if path == "/metrics" else {"date", "x-request-id"}
    assert {name: value for name, value in head.headers.items() if name not in own} == {
        name: value for name, value in get.headers.items() if name not in own
    }


async def test_head_of_what_is_not_there_is_a_404_without_a_body(served: Serving) -> None:
    for path in ("/v1/models/other", "/v1/responses/resp_1", "/nothing"):
        response = await served.client.head(path)
        assert (response.status_code, response.content) == (404, b"")


async def test_head_of_what_only_takes_a_body_is_a_405(served: Serving) -> None:
    response = await served.client.head("/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@in_one_loop
@pytest.mark.parametrize("operation", [*OPERATIONS.without_admin()], ids=lambda operation: operation.path)
async def test_a_wrong_method_is_told_all_that_the_path_has(lasting: Serving, operation: Any) -> None:
    path = operation.path.replace("{model:path}", "fake-model").replace("{response_id}", "resp_1")
    response = await lasting.client.request("PATCH", path)
    error = error_of(response, 405) if not path.startswith("/v1/messages") else response.json()["error"]
    allowed = response.headers["allow"].split(", ")
    assert allowed == [*operation.allowed_methods]
    assert response.headers["allow"] in error["message"]
    assert len({*allowed}) == len(allowed)
    assert ("HEAD" in allowed) == ("GET" in allowed)
    is_endless = isinstance(operation, PageOperation) and operation.is_endless
    for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", *(() if is_endless else ("GET",))):
        status = (await lasting.client.request(method, path)).status_code
        assert (status == 405) == (method not in allowed), method


async def test_without_a_key_nobody_is_told_which_paths_and_methods_there_are(guarded: Serving) -> None:
    for method in ("GET", "HEAD", "PATCH", "OPTIONS"):
        assert (await guarded.client.request(method, "/v1/models")).status_code == 401
    error_of(await guarded.client.get("/chat/completions"), 401)
    assert (await guarded.client.head("/v1/models", headers=KEY)).status_code == 200


@in_one_loop
@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/v1/v1/messages", "/v1/messages"),
        ("POST", "/v1/chat/completions/", "/v1/chat/completions"),
        ("POST", "/chat/completions/", "/v1/chat/completions"),
        ("POST", "//v1//chat/completions", "/v1/chat/completions"),
        ("POST", "/V1/Chat/Completions", "/v1/chat/completions"),
        ("POST", "/api/v1/completions", "/v1/completions"),
        ("POST", "/openai/deployments/embeddings", "/v1/embeddings"),
        ("POST", "/messages/count_tokens", "/v1/messages/count_tokens"),
        ("POST", "/responses/input_tokens", "/v1/responses/input_tokens"),
        ("GET", "/models", "/v1/models"),
        ("GET", "/models/some", "/v1/models/some"),
        ("GET", "/v1/models/", "/v1/models"),
        ("GET", "/v1/health", "/health"),
        ("GET", "/v1/metrics", "/metrics"),
        ("GET", "/metrics/", "/metrics"),
        ("POST", "/v1/tokenize", "/tokenize"),
    ],
)
async def test_a_path_that_was_nearly_right_is_a_404_that_says_what_was_meant(
    lasting: Serving, method: str, path: str, meant: str
) -> None:
    error = error_of(await lasting.client.request(method, "http://test" + path), 404)
    assert error["code"] == "unknown_url"
    assert f"unknown request URL: {method} {path}; did you mean {meant}?" in error["message"]
    assert ("A base URL ends with /v1" in error["message"]) == meant.startswith("/v1/")


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/", "/v1/nothing", "/redoc", "/v1/responses/a/b/c"])
async def test_any_other_path_is_a_404_without_a_guess(served: Serving, path: str) -> None:
    error = error_of(await served.client.get(path), 404)
    assert (error["code"], "did you mean" in error["message"]) == ("unknown_url", False)
    assert await served.metric("orcinus_http_requests_total", method="GET", route="other", status="404") == 1


async def test_the_tokens_of_a_response_can_be_counted(served: Serving) -> None:
    body = {"input": [user("hello")], "instructions": "Be kind."}
    count = answer_of(await served.post("/v1/responses/input_tokens", **body))
    usage = answer_of(await served.post("/v1/responses", **body))["usage"]
    assert count == {"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}
    error = error_of(await served.post("/v1/responses/input_tokens"), 400)
    assert error["param"] == "input"


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("GET", "/v1/responses/resp_1", "/v1/responses/{response_id}"),
        ("DELETE", "/v1/responses/resp_1", "/v1/responses/{response_id}"),
        ("POST", "/v1/responses/resp_1/cancel", "/v1/responses/{response_id}/cancel"),
        ("GET", "/v1/responses/resp_1/input_items", "/v1/responses/{response_id}/input_items"),
        ("POST", "/v1/responses/compact", "/v1/responses/compact"),
    ],
)
async def test_what_needs_a_stored_response_is_a_404_with_a_route_of_its_own(
    served: Serving, method: str, path: str, route: str
) -> None:
    error = error_of(await served.client.request(method, path), 404)
    assert error["code"] == "response_not_found"
    assert ("'resp_1'" in error["message"]) == ("resp_1" in path)
    assert await served.metric("orcinus_http_requests_total", method=method, route=route, status="404") == 1


async def test_only_what_machines_ask_for_all_the_time_is_kept_out_of_the_log(
    served: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for path in ("/live", "/ready", "/health", "/metrics", "/", "/docs", "/openapi.json", "/v1/models"):
        await served.client.get(path)
    lines = [record.getMessage().split()[1] for record in caplog.records if record.name == "orcinus.server.access"]
    assert lines == ["/", "/docs", "/openapi.json", "/v1/models"]


@pytest.mark.parametrize("target", [b"*", b"http://localhost"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_what_the_server_as_a_whole_can_do_is_told_without_a_key(
    tmp_path: Path, target: bytes, version: bytes
) -> None:
    async with (
        serving(tmp_path, api_key=("secret",)) as served,
        listening(served) as (_, port),
        connect(port) as client,
    ):
        client.writer.write(b"OPTIONS %b HTTP/%b\r\nhost: localhost\r\nconnection: close\r\n\r\n" % (target, version))
        answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 204 ")
        [allowed] = [line for line in answer.split(b"\r\n") if line.startswith(b"allow: ")]
        assert {b"GET", b"HEAD", b"POST", b"OPTIONS"} <= set(allowed.removeprefix(b"allow: ").split(b", "))
        assert b"\r\nx-request-id: " in answer
        name = "orcinus_http_requests_total"
        assert await served.metric(name, method="OPTIONS", route="other", status="204") == 1


async def test_a_page_may_ask_of_the_server_as_a_whole(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, cors_allow_origin=("*",)) as served,
        listening(served) as (_, port),
        connect(port) as client,
    ):
        asking = b"origin: https://a.example\r\naccess-control-request-method: POST\r\nconnection: close\r\n"
        client.writer.write(b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n" + asking + b"\r\n")
        answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\naccess-control-allow-origin: *\r\n" in answer


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (b"GET http://localhost", 200),
        (b"GET http://localhost?a=/b", 200),
        (b"GET http://localhost/live?a", 200),
        (b"OPTIONS /*", 404),
        (b"GET *", 404),
        (b"POST *", 404),
    ],
)
async def test_a_url_without_a_path_means_the_first_page(tmp_path: Path, asked: bytes, status: int) -> None:
    async with serving(tmp_path) as served, listening(served) as (_, port), connect(port) as client:
        client.writer.write(asked + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert await client.status() == status
