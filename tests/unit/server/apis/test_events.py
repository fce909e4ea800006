"""GET /events and the page at /, over a real socket where it matters how a stream ends."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from orcinus.server.apis.events import answer
from orcinus.server.apis.page.answer import FILES
from orcinus.server.watching.fields import event_schema
from orcinus.server.watching.watch import MAX_WATCHERS, Watch
from tests.unit.engine.fakes import FakeExecutor, alphabet
from tests.unit.server.serving import Serving, error_of, listening, serving, until

KEY = {"authorization": "Bearer secret"}
SVG = "http://www.w3.org/2000/svg"  # a name, from which nothing is loaded


async def events_from(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line:
            assert line.startswith("data: {")
            yield json.loads(line.removeprefix("data: "))


def watch_of(served: Serving) -> Watch:
    watch: Watch = served.app.state.watch
    return watch


async def test_a_watcher_sees_a_request_come_and_go_and_costs_nothing_after_it_has_left(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, FakeExecutor(alphabet)) as served,
        listening(served) as (_, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        kinds: list[str] = []
        async with client.stream("GET", "/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-cache"
            async for event in events_from(response):
                jsonschema.validate(event, event_schema())
                if not kinds:
                    kinds.append("asked")
                    await served.complete("ab", max_tokens=5)
                kinds += [move[1] for move in event["moves"]]
                if kinds[-1] == "left":
                    break
        assert kinds == ["asked", "came", "decodes", "left"]
        await until(lambda: not watch_of(served)._watchers)
        assert served.app.state.metrics.step_listener is None


async def test_events_are_bounded_in_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pauses between them, whatever comes from the engine."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async with (
        serving(tmp_path, FakeExecutor(alphabet)) as served,
        listening(served) as (_, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
        client.stream("GET", "/events") as response,
    ):
        monkeypatch.setattr("orcinus.server.apis.events.answer.asyncio.sleep", noted)
        num_events = 0
        async for _ in events_from(response):
            num_events += 1
            for watcher in watch_of(served)._watchers:
                watcher.news.set()
            if num_events == 20:
                break
        monkeypatch.undo()
    assert pauses.count(1 / answer.MAX_EVENTS_PER_S) >= 18
    assert answer.MAX_EVENTS_PER_S <= 10


async def test_a_stream_ends_when_the_server_does(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as served,
        listening(served) as (_, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
        client.stream("GET", "/events") as response,
    ):
        statuses = []
        async for event in events_from(response):
            statuses.append(event["status"])
            if len(statuses) == 1:
                await served.engine.aclose()
    assert (statuses[0], statuses[-1]) == ("ready", "dead")


async def test_a_stream_ends_in_time_for_a_key_to_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "_STREAM_S", 0.0)
    async with (
        serving(tmp_path, api_key=("secret",)) as served,
        listening(served) as (_, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
        client.stream("GET", "/events", headers=KEY) as response,
    ):
        events = [event async for event in events_from(response)]
    assert len(events) == 1
    assert events[0]["status"] == "ready"


async def test_events_need_a_key_where_there_are_keys_and_the_page_does_not(tmp_path: Path) -> None:
    async with serving(tmp_path, api_key=("secret",)) as served:
        error_of(await served.client.get("/events"), 401)
        for path in ("/", *FILES):
            assert (await served.client.get(path)).status_code == 200, path


async def test_one_watcher_too_many_is_told_so(served: Serving) -> None:
    watch = watch_of(served)
    opened = [watch.open() for _ in range(MAX_WATCHERS)]
    for each in opened:
        each.__enter__()
    response = await served.client.get("/events")
    assert f"at most {MAX_WATCHERS}" in error_of(response, 429)["message"]
    assert response.headers["retry-after"]
    for each in opened:
        each.__exit__(None, None, None)


async def test_head_of_the_events_ends(served: Serving) -> None:
    response = await served.client.head("/events")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert not watch_of(served)._watchers


async def test_without_the_page_there_are_neither_page_nor_events(tmp_path: Path) -> None:
    async with serving(tmp_path, page=False) as served:
        for path in ("/", "/events", *FILES):
            assert error_of(await served.client.get(path), 404)["code"] == "unknown_url", path
        document = (await served.client.get("/openapi.json")).json()
        assert "/events" not in document["paths"]
        assert (await served.client.get("/docs")).status_code == 200


async def test_the_page_refers_to_nothing_outside_this_server(served: Serving) -> None:
    page = await served.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in str(policy)
    texts = [page.text, *[(await served.client.get(path)).text for path in FILES]]
    for text in texts:
        assert "://" not in text.replace(SVG, "")
        assert not re.search(r"<script(?! type=\"module\" src)|<style|\sstyle=|\son\w+=", text)


async def test_the_page_has_all_files_that_it_names_and_no_other(served: Serving) -> None:
    page = (await served.client.get("/")).text
    named = {f"/{path}" for path in re.findall(r'(?:href|src)="(page/[^"]+)"', page)}
    for path, media_type in FILES.items():
        response = await served.client.get(path)
        assert response.headers["content-type"].startswith(media_type)
        assert response.headers["x-content-type-options"] == "nosniff"
        named |= {f"/page/{name}" for name in re.findall(r'from "\./([\w.]+)"', response.text)}
    assert named == set(FILES)


async def test_the_page_finds_its_files_wherever_a_proxy_publishes_it(tmp_path: Path) -> None:
    async with serving(tmp_path, root_path="/llm") as served:
        for path in ("/", *FILES):
            assert (await served.client.get("/llm" + path)).status_code == 200, path


@pytest.mark.parametrize("port", [None, 0])
async def test_the_page_leads_to_metrics_where_they_are(tmp_path: Path, port: int | None) -> None:
    async with serving(tmp_path, metrics_port=port) as served:
        links = re.findall(r'<a href="([^"]+)"', (await served.client.get("/")).text)
    assert ("metrics" in links) == (port is None)
    assert "docs" in links
