"""What bounds a request from its head to its admission: places, deadlines, its client's leaving; what is counted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orcinus.server.http import body
from orcinus.server.operations import OPERATIONS, BodyOperation, GenerationOperation
from orcinus.server.requests.caller import TIMEOUT_HEADER
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Gate, Serving, error_of, listening, serving, until, user

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [user("x")]},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [user("x")], "max_tokens": 4, "model": "fake-model"},
    "/v1/messages/count_tokens": {"messages": [user("x")], "model": "fake-model"},
    "/v1/embeddings": {"input": "x"},
    **{path: {"query": "x", "documents": ["y"]} for path in ("/v1/rerank", "/v2/rerank", "/rerank")},
    **{path: {"text_1": "x", "text_2": "y"} for path in ("/v1/score", "/score")},
    "/v1/responses/input_tokens": {"input": "x"},
    "/tokenize": {"prompt": "x"},
}
GENERATING = [row.path for row in OPERATIONS if isinstance(row, GenerationOperation)]
PREPARING = "orcinus_requests_preparing"


class Held:
    """Keeps what is encoded waiting, and notes what is cancelled."""

    def __init__(self, served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go_on = asyncio.Event()
        self.num_cancelled = 0
        for name in ("encode", "render_and_encode"):
            monkeypatch.setattr(served.engine, name, self._held(getattr(served.engine, name)))

    def _held(self, encode: Any) -> Any:
        async def wait(*args: Any, **options: Any) -> Any:
            try:
                await self.may_go_on.wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
            return await encode(*args, **options)

        return wait


@contextlib.asynccontextmanager
async def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[tuple[Serving, Held]]:
    async with serving(tmp_path, FakeExecutor(says("Hello")), **settings) as served:
        yield served, Held(served, monkeypatch)


def test_every_operation_with_a_body_is_here_but_detokenize() -> None:
    with_body = {row.path for row in OPERATIONS if isinstance(row, (GenerationOperation, BodyOperation))}
    assert with_body - BODIES.keys() == {"/detokenize"}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("in_header", [True, False])
async def test_a_deadline_ends_a_request_that_is_being_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, in_header: bool
) -> None:
    if not in_header and path not in GENERATING:
        pytest.skip("its body has no deadline")
    async with held(tmp_path, monkeypatch) as (served, work):
        timeout = {TIMEOUT_HEADER: "0.05"} if in_header else {}
        body = BODIES[path] if in_header else {**BODIES[path], "timeout": 0.05}
        response = await served.client.post(path, json=body, headers=timeout)
        assert response.status_code == 408
        assert "within 0.05 s" in response.json()["error"]["message"]
        assert work.num_cancelled == 1
        assert await served.metric("orcinus_requests_total", outcome="timeout") == (path in GENERATING)
        assert await served.metric(PREPARING) == 0


async def test_the_earlier_of_two_deadlines_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with held(tmp_path, monkeypatch) as (served, _):
        headers = {TIMEOUT_HEADER: "0.05"}
        response = await served.client.post("/v1/completions", json={"prompt": "x", "timeout": 60}, headers=headers)
        assert "within 0.05 s" in error_of(response, 408)["message"]


@pytest.mark.parametrize("value", [0, -1, "soon", True, [1], 1e9])
async def test_a_deadline_that_is_none_is_refused_and_ends_nothing(served: Serving, value: Any) -> None:
    response = await served.post("/v1/completions", prompt="x", timeout=value)
    assert error_of(response, 400)["param"] == "timeout"


async def test_a_request_that_waits_for_its_body_ends_at_its_deadline(served: Serving) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    headers = {TIMEOUT_HEADER: "0.05", "content-type": "application/json"}
    response = await served.client.post("/v1/completions", content=never(), headers=headers)
    error_of(response, 408)


async def test_a_client_that_leaves_ends_what_is_prepared_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with held(tmp_path, monkeypatch) as (served, work), listening(served) as (_, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            asked = asyncio.create_task(client.post("/v1/chat/completions", json=BODIES["/v1/chat/completions"]))
            await until(lambda: served.app.state.context.intake._inside)
            assert await served.metric(PREPARING) == 1
            asked.cancel()
            await until(lambda: work.num_cancelled)
        await until(lambda: not served.app.state.metrics._http_in_progress)
        labels = {"method": "POST", "route": "/v1/chat/completions", "status": "499"}
        assert await served.metric("orcinus_http_requests_total", **labels) == 1
        assert await served.metric("orcinus_requests_total", outcome="abort") == 1
        assert await served.metric(PREPARING) == 0


async def test_one_more_than_may_be_prepared_is_refused_by_client_and_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("a", "b", "c")
    async with held(tmp_path, monkeypatch, api_key=keys, max_preparing=3) as (served, work):

        def ask(key: str, path: str = "/v1/completions") -> asyncio.Task[httpx.Response]:
            headers = {"authorization": f"Bearer {key}"}
            return asyncio.create_task(served.client.post(path, json=BODIES[path], headers=headers))

        async def refusal(key: str, path: str) -> dict[str, Any]:
            return error_of(await ask(key, path), 429)

        inside = served.app.state.context.intake._inside
        asked = [ask("a")]
        await until(lambda: len(inside) == 1)
        assert "half of max_preparing), and 1 are" in (await refusal("a", "/v1/completions"))["message"]
        assert (await refusal("a", "/tokenize"))["code"] == "quota"
        asked += [ask("b"), ask("c")]
        await until(lambda: len(inside) == 3)
        assert "at most 3 requests" in (await refusal("c", "/v1/completions"))["message"]
        assert (await refusal("c", "/tokenize"))["code"] == "queue_full"
        work.may_go_on.set()
        assert [(await answer).status_code for answer in asked] == [200] * 3


async def test_what_is_prepared_is_counted_with_its_time(served: Serving) -> None:
    await served.complete()
    await served.post("/v1/completions", prompt=1)
    assert await served.metric("orcinus_preparation_time_seconds_count") == 2
    assert await served.metric(PREPARING) == 0


async def test_bodies_of_one_client_may_take_half_of_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_FULL_BODIES", 2)
    gate = Gate()
    asked = {"prompt": "a", "user": "x" * 900}
    executor = FakeExecutor(says("Hi"), before_step=gate)
    async with serving(tmp_path, executor, max_body_bytes=1024, api_key=("one", "other")) as served:

        def ask(key: str) -> asyncio.Task[httpx.Response]:
            headers = {"authorization": f"Bearer {key}"}
            return asyncio.create_task(served.client.post("/v1/completions", json=asked, headers=headers))

        first = ask("one")
        await until(lambda: served.engine.num_queued + served.engine.num_running == 1)
        refused = error_of(await ask("one"), 429)
        assert refused["code"] == "quota"
        assert "of one client in progress may have at most 1024 bytes together" in refused["message"]
        other = ask("other")
        await until(lambda: served.engine.num_queued + served.engine.num_running == 2)
        gate.open()
        assert [(await answer).status_code for answer in (first, other)] == [200, 200]
        assert (await ask("one")).status_code == 200
