"""More than a server can do, with real processes: refusals that say when to come again, shares, and deadlines.

Its engine has no model: how long a step takes is all that matters here.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.step_gate import StepGate
from tests.server_process import LIGHT, PATIENCE_S, ServerProcess, until

KEYS = ("flood", "trickle")
REJECTED = 'orcinus_requests_total{outcome="rejected"}'
LIMITS = ("--max-num-seqs", "2", "--max-queue-len", "24", "--max-requests-per-key", "20")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> StepGate:
    return StepGate(tmp_path_factory.mktemp("overload") / "gate")


@pytest.fixture(scope="module")
def server(gate: StepGate) -> Iterator[ServerProcess]:
    keys = (f"--api-key={key}" for key in KEYS)
    process = ServerProcess(*keys, *LIMITS, module=LIGHT, constants=gate.constants)
    try:
        yield process
    finally:
        process.close()


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def client(server: ServerProcess, key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(
        base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S, limits=limits
    )


async def reach(server: ServerProcess, metric: str, value: float) -> None:
    await asyncio.to_thread(until, lambda: server.metric(metric) == value, f"{metric} did not come to {value}")


def body(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"Number {number}.", "max_tokens": 20, "ignore_eos": True, "temperature": 0, **fields}


def test_of_a_burst_all_that_is_admitted_is_answered_and_the_rest_is_told_when_to_come_again(
    server: ServerProcess, gate: StepGate
) -> None:
    async def burst() -> list[httpx.Response]:
        gate.hold()
        async with client(server, "flood") as flood, asyncio.TaskGroup() as group:
            asked = [group.create_task(flood.post("/v1/completions", json=body(number))) for number in range(120)]
            await reach(server, REJECTED, 100)
            gate.open()
        return [task.result() for task in asked]

    responses = asyncio.run(burst())
    assert Counter(response.status_code for response in responses) == {200: 20, 429: 100}
    for response in responses:
        if response.status_code == 200:
            assert response.json()["usage"]["completion_tokens"] == 20
        else:
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert response.json()["error"]["code"] in {"quota", "queue_full"}
            assert 1 <= int(response.headers["retry-after"]) <= 120
    until(lambda: server.metric("orcinus_slots_in_use") == 0, "the slots are still taken")
    assert server.metric("orcinus_queue_depth") == 0


def test_the_flood_of_one_key_does_not_hold_up_the_single_request_of_another(
    server: ServerProcess, gate: StepGate
) -> None:
    ended: list[str] = []

    async def ask(http: httpx.AsyncClient, name: str, number: int) -> None:
        response = await http.post("/v1/completions", json=body(number, max_tokens=40))
        assert response.status_code == 200, response.text
        ended.append(name)

    async def run() -> None:
        gate.hold()
        async with client(server, "flood") as flood, client(server, "trickle") as trickle, asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(ask(flood, "flood", number))
            await reach(server, "orcinus_queue_depth", 18)
            group.create_task(ask(trickle, "trickle", 20))
            await reach(server, "orcinus_queue_depth", 19)
            gate.open()

    asyncio.run(run())
    assert len(ended) == 21
    # Two run, one of the flood may have had its turn, and two may end beside the one.
    assert ended.index("trickle") <= 5, ended


def test_deadlines_hold_while_the_engine_does_nothing(server: ServerProcess) -> None:
    """Running and waiting ones. The engine is let go on before anybody could take it for dead."""
    engine = until(server.engine, "there is no engine")

    async def expire() -> list[httpx.Response]:
        async with client(server, "flood") as http:
            return await asyncio.gather(
                *(
                    http.post("/v1/completions", json=body(number), headers={"x-request-timeout": "0.5"})
                    for number in range(6)
                )
            )

    with frozen(engine):
        responses = asyncio.run(expire())
    assert [response.status_code for response in responses] == [408] * 6
    assert all("0.5 s" in response.json()["error"]["message"] for response in responses)
    until(lambda: server.metric("orcinus_slots_in_use") == 0, "the slots are still taken")
    answer = server.http.post("/v1/completions", json=body(1), headers={"x-api-key": "trickle"}).json()
    assert answer["usage"]["completion_tokens"] == 20
