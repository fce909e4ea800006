"""Web pages of other origins, and proxies that publish the server under a path."""

from pathlib import Path

import pytest

from tests.unit.server.serving import Serving, answer_of, serving, user

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
