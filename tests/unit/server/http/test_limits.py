"""Who is refused before anything is read, what each key may have, whose turn it is, and how long a request may take."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from orcinus.server.operations import OPERATIONS
from orcinus.server.requests.caller import TIMEOUT_HEADER, Caller
from tests.unit.engine.fakes import FakeExecutor, alphabet
from tests.unit.server.serving import Gate, Serving, error_of, events_of, generation_request, serving, until, user

ENGINE_PATHS = [operation.path for operation in OPERATIONS if operation.needs_room]
KEYS = ("one-key", "another-key")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [user("x")]},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [user("x")], "max_tokens": 4, "model": "orcinus"},
    "/v1/embeddings": {"input": "x"},
    **{path: {"query": "x", "documents": ["y"]} for path in ("/v1/rerank", "/v2/rerank", "/rerank")},
    **{path: {"text_1": "x", "text_2": "y"} for path in ("/v1/score", "/score")},
}


@contextlib.asynccontextmanager
async def held(
    tmp_path: Path, *, max_num_seqs: int = 1, **settings: Any
) -> AsyncIterator[tuple[Serving, Gate, FakeExecutor]]:
    """A server whose model makes no step until it is let."""
    gate = Gate()
    executor = FakeExecutor(alphabet, before_step=gate)
    async with serving(tmp_path, executor, info={"max_num_seqs": max_num_seqs}, **settings) as served:
        try:
            yield served, gate, executor
        finally:
            gate.open()


async def ask(served: Serving, key: str | None = None, headers: Any = None, **body: Any) -> httpx.Response:
    headers = {**(headers or {}), **({} if key is None else {"authorization": f"Bearer {key}"})}
    body = {"prompt": "x", "max_tokens": 2, **body}
    return await served.client.post("/v1/completions", json=body, headers=headers)


async def num_in_flight(served: Serving, number: int) -> None:
    await until(lambda: served.engine.num_running + served.engine.num_queued == number)


def check_429(response: httpx.Response, code: str) -> str:
    """The message."""
    error = error_of(response, 429)
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", code, None)
    assert 1 <= int(response.headers["retry-after"]) <= 120
    message: str = error["message"]
    return message


# --- before anything is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ENGINE_PATHS)
async def test_where_the_queue_is_full_a_request_is_refused_before_its_body_is_read(tmp_path: Path, path: str) -> None:
    was_read = False

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal was_read
        was_read = True
        yield b"{"

    async with held(tmp_path, max_queue_len=1) as (served, _, _):
        stream = served.engine.submit(generation_request("first", 2))
        response = await served.client.post(path, content=chunks(), headers={"content-type": "application/json"})
        assert response.status_code == 429
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert "x-request-id" in response.headers
        assert not was_read
        assert await served.metric("orcinus_requests_total", outcome="rejected") == 1
        stream.abort()
        response = await served.client.post(path, content=chunks(), headers={"content-type": "application/json"})
        assert (response.status_code, was_read) == (400, True)


async def test_refusals_are_counted_in_one_line_of_the_log_and_have_none_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orcinus.server.http.throttled_log.LOGGED_EVERY_S", 0.2)
    caplog.set_level(logging.INFO, "orcinus.server.access")
    async with held(tmp_path, max_queue_len=1) as (served, _, _):
        stream = served.engine.submit(generation_request("first", 2))
        for number in (30, 1):
            caplog.clear()
            for _ in range(number):
                check_429(await ask(served), "queue_full")
            await until(lambda number=number: sum(map(num_refusals, caplog.messages)) == number)
            assert all(message.startswith("requests refused with 429: ") for message in caplog.messages)
            assert len(caplog.messages) < max(2, number)
        stream.abort()


def num_refusals(message: str) -> int:
    return int(message.rpartition(" ")[2])


async def test_a_full_queue_is_in_the_way_of_nothing_else(tmp_path: Path) -> None:
    async with held(tmp_path, max_queue_len=1) as (served, _, _):
        stream = served.engine.submit(generation_request("first", 2))
        for path in ("/live", "/ready", "/health", "/metrics", "/v1/models"):
            assert (await served.client.get(path)).status_code == 200
        assert (await served.post("/tokenize", prompt="x")).status_code == 200
        assert (await served.client.get("/v1/completions")).status_code == 405
        stream.abort()


async def test_without_a_key_a_full_queue_is_not_told_of(tmp_path: Path) -> None:
    async with held(tmp_path, max_queue_len=1, api_key=KEYS) as (served, _, _):
        stream = served.engine.submit(generation_request("first", 2))
        error_of(await ask(served), 401)
        check_429(await ask(served, "one-key"), "queue_full")
        stream.abort()


async def test_a_server_that_drains_says_so_and_not_that_its_queue_is_full(tmp_path: Path) -> None:
    async with held(tmp_path, max_queue_len=1) as (served, _, _):
        stream = served.engine.submit(generation_request("first", 2))
        served.app.state.context.intake.close()
        assert error_of(await ask(served), 503)["code"] == "draining"
        stream.abort()


async def test_waiting_prompts_are_bounded_in_tokens_and_one_that_is_computed_does_not_wait(tmp_path: Path) -> None:
    async with held(tmp_path, max_queue_tokens=20) as (served, gate, executor):
        tasks = [asyncio.create_task(ask(served, prompt="x" * 50, max_tokens=100))]
        await until(lambda: executor.plans and served.engine._admission.num_queued_tokens == 0)  # nor has it a token
        for number, length in ((2, 15), (3, 5)):
            tasks.append(asyncio.create_task(ask(served, prompt="x" * length)))
            await num_in_flight(served, number)
        message = check_429(await ask(served, prompt="x"), "queue_full")
        assert "20 tokens of prompts wait of at most 20 (max_queue_tokens)" in message
        gate.open()
        assert [(await task).status_code for task in tasks] == [200, 200, 200]
        assert (await ask(served, prompt="x" * 30)).status_code == 200


# --- what a key may have ----------------------------------------------------------------------------------


async def test_a_key_has_so_many_requests_at_once_whichever_header_it_comes_in(tmp_path: Path) -> None:
    async with held(tmp_path, api_key=KEYS, max_requests_per_key=2) as (served, gate, _):
        tasks = [asyncio.create_task(ask(served, "one-key", n=2))]
        await num_in_flight(served, 2)
        message = check_429(await ask(served, "one-key"), "quota")
        assert "max_requests_per_key" in message
        check_429(await ask(served, headers={"x-api-key": "one-key"}), "quota")
        tasks.append(asyncio.create_task(ask(served, "another-key")))
        await num_in_flight(served, 3)
        gate.open()
        assert [(await task).status_code for task in tasks] == [200, 200]
        assert (await ask(served, "one-key", n=2)).status_code == 200
        assert error_of(await ask(served, "one-key", n=3), 400)["param"] == "n"


async def test_a_request_that_is_given_up_gives_its_place_back(tmp_path: Path) -> None:
    async with held(tmp_path, max_requests_per_key=1) as (served, _, _):
        response = await ask(served, timeout=0.05)
        assert error_of(response, 408)["type"] == "timeout"
        stream = served.engine.submit(generation_request("next", 1))
        check_429(await ask(served), "quota")
        stream.abort()
        error_of(await ask(served, timeout=0.05), 408)


async def test_a_key_has_so_many_tokens_a_minute_and_gets_back_what_it_did_not_use(tmp_path: Path) -> None:
    async with held(tmp_path, api_key=KEYS, max_tokens_per_minute_per_key=100) as (served, gate, _):
        first = asyncio.create_task(ask(served, "one-key", prompt="x" * 10, max_tokens=80, stop=["c"]))
        await num_in_flight(served, 1)
        message = check_429(await ask(served, "one-key", prompt="x" * 10, max_tokens=10), "quota")
        assert "max_tokens_per_minute_per_key" in message
        gate.open()
        assert (await ask(served, "another-key", prompt="x" * 10, max_tokens=80)).status_code == 200
        assert (await first).json()["usage"]["total_tokens"] == 13
        assert (await ask(served, "one-key", prompt="x" * 10, max_tokens=70)).status_code == 200
        check_429(await ask(served, "one-key", prompt="x" * 10, max_tokens=10), "quota")


async def test_without_keys_all_clients_are_one(tmp_path: Path) -> None:
    async with held(tmp_path, max_requests_per_key=1) as (served, _, _):
        stream = served.engine.submit(generation_request("first", 1))
        check_429(await ask(served, "whatever"), "quota")
        stream.abort()


async def test_keys_and_what_is_made_of_them_are_in_no_log_and_no_metric(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with serving(tmp_path, api_key=KEYS, max_requests_per_key=1) as served:
            assert (await ask(served, "one-key")).status_code == 200
            error_of(await ask(served, "one-key", n=128), 400)
            metrics = (await served.client.get("/metrics")).text
    for name in ("one-key", hashlib.sha256(b"one-key").hexdigest()[:8]):
        assert name not in caplog.text
        assert name not in metrics


# --- whose turn it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "order"), [("fair", "mmfm"), ("fcfs", "mmmf")])
async def test_keys_take_turns_unless_first_come_is_first_served(tmp_path: Path, policy: str, order: str) -> None:
    async with held(tmp_path, api_key=KEYS, scheduling_policy=policy) as (served, gate, executor):
        tasks = []
        for number, (key, prompt) in enumerate([*[("one-key", "m")] * 3, ("another-key", "f")], 1):
            tasks.append(asyncio.create_task(ask(served, key, prompt=prompt, max_tokens=1)))
            await num_in_flight(served, number)
        gate.open()
        assert [(await task).status_code for task in tasks] == [200] * 4
    introduced = [new.token_ids[0] for plan in executor.plans for new in plan.new_requests]
    assert bytes(introduced).decode() == order


# --- deadlines --------------------------------------------------------------------------------------------


def test_of_two_deadlines_the_earlier_one_holds() -> None:
    assert Caller(timeout_s=3.0).deadline_s(2.0) == Caller(timeout_s=2.0).deadline_s(3.0) == 2.0
    assert Caller(timeout_s=3.0).deadline_s(None) == Caller().deadline_s(3.0) == 3.0
    assert Caller().deadline_s(None) is None


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_deadline_may_come_in_a_header(tmp_path: Path, is_streamed: bool) -> None:
    async with held(tmp_path) as (served, _, _):
        response = await ask(served, headers={TIMEOUT_HEADER: "0.05"}, timeout=600, stream=is_streamed)
        error = error_of(response, 408)
        assert (error["type"], error["code"]) == ("timeout", None)
        assert "0.05 s" in error["message"]
        response = await ask(served, headers={TIMEOUT_HEADER: "600"}, timeout=0.05, stream=is_streamed)
        assert "0.05 s" in error_of(response, 408)["message"]


async def test_it_holds_for_a_stream_that_has_begun_too_and_its_slot_is_free_in_the_next_step(tmp_path: Path) -> None:
    async with held(tmp_path) as (served, gate, executor):
        task = asyncio.create_task(ask(served, headers={TIMEOUT_HEADER: "0.3"}, stream=True, max_tokens=200))
        gate.let(3)
        response = await task
        *chunks, last = events_of(response.text)
        assert chunks
        assert last["error"]["type"] == "timeout"
        num_steps = len(executor.plans)
        gate.open()
        assert (await ask(served, max_tokens=1)).status_code == 200
        assert len(executor.plans) <= num_steps + 2
        assert await served.metric("orcinus_requests_total", outcome="timeout") == 1


@pytest.mark.parametrize("path", ENGINE_PATHS)
async def test_every_api_takes_the_header(tmp_path: Path, path: str) -> None:
    async with held(tmp_path, served_model_name=("orcinus",)) as (served, _, _):
        response = await served.client.post(path, json=BODIES[path], headers={TIMEOUT_HEADER: "0.05"})
        assert response.status_code == 408, response.text
        response = await served.client.post(path, json=BODIES[path], headers={TIMEOUT_HEADER: "soon"})
        assert response.status_code == 400


@pytest.mark.parametrize("path", ENGINE_PATHS)
async def test_a_deadline_counts_from_when_a_request_came_so_that_reading_it_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(
        "orcinus.server.requests.caller.time", SimpleNamespace(monotonic=lambda: time.monotonic() - 600)
    )
    async with held(tmp_path, served_model_name=("orcinus",)) as (served, _, _), asyncio.timeout(10):
        response = await served.client.post(path, json={**BODIES[path], "timeout": 599})
        assert response.status_code == 408, response.text
        assert "within 599 s" in response.json()["error"]["message"]
        assert await served.metric("orcinus_requests_total", outcome="timeout") == 1


@pytest.mark.parametrize("value", ["soon", "", "0", "-1", "nan", "inf", "1e9", "1_0", "86401"])
async def test_a_header_that_is_no_deadline_is_refused_with_its_bounds(served: Serving, value: str) -> None:
    error = error_of(await ask(served, headers={TIMEOUT_HEADER: value}), 400)
    assert error["param"] == TIMEOUT_HEADER
    assert "above 0 and at most 86400" in error["message"]
    assert repr(value) in error["message"]


async def test_how_long_an_sdk_waits_for_bytes_is_no_deadline(tmp_path: Path) -> None:
    async with held(tmp_path) as (served, gate, _):
        headers = {"x-stainless-read-timeout": "0.01", "x-stainless-timeout": "0.01"}
        task = asyncio.create_task(ask(served, headers=headers))
        await num_in_flight(served, 1)
        error_of(await ask(served, timeout=0.1), 408)
        gate.open()
        assert (await task).status_code == 200


async def test_a_deadline_holds_while_the_engine_is_stuck(tmp_path: Path) -> None:
    async with held(tmp_path) as (served, gate, executor):
        running = asyncio.create_task(ask(served, max_tokens=200))
        await until(lambda: executor.plans)
        responses = await asyncio.gather(*(ask(served, timeout=0.05) for _ in range(3)))
        assert [error_of(response, 408)["type"] for response in responses] == ["timeout"] * 3
        assert len(executor.plans) == 1, "the engine was not stuck"
        gate.open()
        assert (await running).status_code == 200
