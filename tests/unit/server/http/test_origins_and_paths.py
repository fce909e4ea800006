"""Web pages of other origins, and proxies that publish the server under a path."""

from pathlib import Path

import pytest

from tests.unit.server.http.test_connections import connect
from tests.unit.server.serving import Serving, answer_of, listening, serving, until, user

PAGE = "https://chat.example.com"
ASKING = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type,x-a"}
KEY = {"authorization": "Bearer secret"}


@pytest.mark.parametrize("origins", [(PAGE, "http://localhost:3000"), ("*",)])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/nothing", "/metrics", "/"])
async def test_a_page_may_ask_on_every_path_without_a_key(tmp_path: Path, origins: tuple[str, ...], path: str) -> None:
    async with serving(tmp_path, api_key=("secret",), cors_allow_origin=origins) as served:
        answer = await served.client.options(path, headers={"origin": PAGE, **ASKING})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in (PAGE, "*")
        assert "POST" in answer.headers["access-control-allow-methods"]
        allowed = {name.strip() for name in answer.headers["access-control-allow-headers"].split(",")}
        assert {"authorization", "content-type", "x-a"} <= allowed
        assert answer.headers["x-request-id"]


async def test_a_page_reads_answers_and_errors_and_their_headers(tmp_path: Path) -> None:
    async with serving(tmp_path, api_key=("secret",), cors_allow_origin=(PAGE,)) as served:
        headers = {"origin": PAGE, **KEY}
        chat = await served.client.post("/v1/chat/completions", json={"messages": [user("a")]}, headers=headers)
        stream = await served.client.post(
            "/v1/completions", json={"prompt": "a", "max_tokens": 2, "stream": True}, headers=headers
        )
        refused = [
            await served.client.get("/v1/models", headers={"origin": PAGE}),
            await served.client.get("/v1/nothing", headers=headers),
            await served.client.get("/v1/completions", headers=headers),
        ]
        assert (chat.status_code, stream.status_code) == (200, 200)
        assert [answer.status_code for answer in refused] == [401, 404, 405]
        for answer in (chat, stream, *refused):
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "Origin" in answer.headers["vary"]
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert "retry-after" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers


async def test_a_page_reads_of_a_fault_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, cors_allow_origin=(PAGE,)) as served:
        monkeypatch.setattr(served.app.state.context, "describe", None)
        answer = await served.client.get("/v1/models", headers={"origin": PAGE})
        assert answer.status_code == 500
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.json()["error"]["message"] == "the server failed while it handled this request"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://chat.example.com", "https://chat.example.com:1", "null"]
)
async def test_a_page_of_another_origin_may_not(tmp_path: Path, origin: str) -> None:
    async with serving(tmp_path, cors_allow_origin=(PAGE,)) as served:
        asked = await served.client.options("/v1/models", headers={"origin": origin, **ASKING})
        answer = await served.client.get("/v1/models", headers={"origin": origin})
        assert asked.status_code == 400
        for response in (asked, answer):
            assert "access-control-allow-origin" not in response.headers


NO_HTTP = b"no HTTP\r\n\r\n"
LONG_URL = b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nhost: localhost\r\norigin: %b\r\n\r\n"
MANY_HEADERS = b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 150 + b"origin: %b\r\n\r\n"
NO_HOST = b"GET / HTTP/1.1\r\norigin: %b\r\n\r\n"
OTHER_PAGE = "http://localhost:3000"


@pytest.mark.parametrize(
    ("origins", "raw", "told"),
    [
        ((PAGE, OTHER_PAGE), LONG_URL % PAGE.encode(), PAGE),
        ((PAGE, OTHER_PAGE), MANY_HEADERS % PAGE.encode(), PAGE),
        ((PAGE, OTHER_PAGE), NO_HOST % OTHER_PAGE.encode(), OTHER_PAGE),
        ((PAGE, OTHER_PAGE), NO_HOST % b"https://evil.example", None),
        ((PAGE, OTHER_PAGE), NO_HTTP, None),
        ((PAGE,), NO_HTTP, PAGE),
        ((PAGE,), NO_HOST % b"https://evil.example", None),
        (("*",), NO_HTTP, "*"),
        (("*",), LONG_URL % b"https://evil.example", "*"),
        ((), LONG_URL % PAGE.encode(), None),
    ],
)
async def test_a_page_reads_what_the_connection_answers(
    tmp_path: Path, origins: tuple[str, ...], raw: bytes, told: str | None
) -> None:
    async with (
        serving(tmp_path, cors_allow_origin=origins) as served,
        listening(served) as (_, port),
        connect(port) as client,
    ):
        client.writer.write(raw)
        head = (await client.reader.read()).partition(b"\r\n\r\n")[0].decode()
    status, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status.split()[1] in ("400", "414", "431")
    assert headers.get("access-control-allow-origin") == told
    assert ("x-request-id" in headers.get("access-control-expose-headers", "")) == bool(origins)
    assert headers.get("vary") == (None if origins in ((), ("*",)) else "Origin")


async def test_a_page_reads_that_there_is_no_room_for_its_connection(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, cors_allow_origin=(PAGE,)) as served,
        listening(served, max_connections=1) as (server, port),
        connect(port),
    ):
        await until(lambda: server.server_state.connections)
        async with connect(port) as second:
            answer = await second.reader.read()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\naccess-control-allow-origin: " + PAGE.encode() in answer


async def test_without_the_setting_no_page_may(served: Serving) -> None:
    answer = await served.client.options("/v1/models", headers={"origin": PAGE, **ASKING})
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_the_server_is_found_under_the_path_that_a_proxy_publishes_and_without_it(tmp_path: Path) -> None:
    async with serving(tmp_path, root_path="/llm/", api_key=("secret",)) as served:
        for prefix in ("/llm", ""):
            assert answer_of(await served.client.get(f"{prefix}/live"))
            assert answer_of(await served.client.get(f"{prefix}/v1/models", headers=KEY))
            assert (await served.client.get(f"{prefix}/v1/models")).status_code == 401
            assert (await served.client.get(f"{prefix}/docs")).status_code == 200
            assert answer_of(await served.client.get(f"{prefix}/openapi.json"))["servers"] == [{"url": "/llm"}]
        redirect = await served.client.get("/llm")
        assert (redirect.status_code, redirect.headers["location"]) == (308, "/llm/")
        moved = await served.client.get("/llm?x=1", follow_redirects=False)
        assert (moved.status_code, moved.headers["location"]) == (308, "/llm/?x=1")
        assert (await served.client.get("/llm/")).headers["content-type"].startswith("text/html")
        assert (await served.client.get("/llmx/live", headers=KEY)).status_code == 404
        assert (await served.client.get("/llm/llm/live", headers=KEY)).status_code == 404
        name = "orcinus_http_requests_total"
        assert await served.metric(name, method="GET", route="/live", status="200") == 2
    async with serving(tmp_path, root_path="/v") as served:
        assert (await served.client.get("/v1/models")).status_code == 200


async def test_the_redirect_to_the_page_is_an_answer_as_any_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with serving(tmp_path, root_path="/llm", cors_allow_origin=(PAGE,)) as served:
        async with listening(served) as (_, port), connect(port) as client:
            client.writer.write(b"GET /llm HTTP/1.1\r\nhost: localhost\r\nx-request-id: mine\r\n")
            client.writer.write(b"origin: %b\r\nconnection: close\r\n\r\n" % PAGE.encode())
            answer = (await client.reader.read()).decode()
        assert answer.startswith("HTTP/1.1 308 ")
        for header in ("location: /llm/", "x-request-id: mine", f"access-control-allow-origin: {PAGE}", "date: "):
            assert f"\r\n{header}" in answer
        await until(lambda: any(line.startswith("GET /llm 308 ") for line in caplog.messages))
        assert await served.metric("orcinus_http_requests_total", method="GET", route="other", status="308") == 1


async def test_what_is_logged_of_a_request_is_the_path_without_the_prefix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with serving(tmp_path, root_path="/llm") as served:
        assert (await served.client.get("/llm/v1/models")).status_code == 200
        assert (await served.client.get("/llm/v1/messages")).headers["request-id"]
    assert [line.rpartition(" ms ")[0].rpartition(" ")[0] for line in caplog.messages if " /v1/" in line] == [
        "GET /v1/models 200",
        "GET /v1/messages 405",
    ]


@pytest.mark.parametrize("prefix", ["/llm", ""])
async def test_what_a_page_asks_first_is_logged_without_the_prefix_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    caplog.set_level("INFO")
    async with serving(tmp_path, root_path="/llm", cors_allow_origin=(PAGE,)) as served:
        answer = await served.client.options(f"{prefix}/v1/models", headers={"origin": PAGE, **ASKING})
        assert answer.status_code == 200
        assert await served.metric("orcinus_http_requests_total", method="OPTIONS", route="/v1/models", status="200")
    assert any(line.startswith("OPTIONS /v1/models 200 ") for line in caplog.messages)
