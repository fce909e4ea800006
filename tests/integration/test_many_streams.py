"""A real server with more connections than `select` can tell apart, whose engine ends while all of them wait."""

import asyncio
import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.server_process import PATIENCE_S, ServerProcess, StartServer, until

FD_SETSIZE = 1024  # from this number on `select` takes no descriptor
NUM_RUNNING, NUM_WAITING, NUM_LATE = 16, 1084, 200
RUNNING = {"prompt": "On and on", "max_tokens": 400}
WAITING = {"prompt": "The whale", "max_tokens": 4}


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process, and those that it starts, have enough files open for all streams."""
    wanted = 2 * (NUM_RUNNING + NUM_WAITING + NUM_LATE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"a process may open {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def text_of(server: ServerProcess, body: dict[str, Any]) -> str:
    """Return the text of a stream on a connection of its own. Raises `AssertionError` where it is not complete."""
    address = urlsplit(server.url)
    content = json.dumps({"stream": True, "temperature": 0, "ignore_eos": True, **body}).encode()
    head = (
        "POST /v1/completions HTTP/1.1",
        f"host: {address.netloc}",
        "content-type: application/json",
        f"content-length: {len(content)}",
        "connection: close",
        *("", ""),
    )
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write("\r\n".join(head).encode() + content)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:1000]
    *events, done = [line[6:].strip() for line in answer.splitlines() if line.startswith(b"data: ")]
    assert done == b"[DONE]", answer[-1000:]
    choices = [choice for event in map(json.loads, events) for choice in event["choices"]]
    assert choices[-1]["finish_reason"] == "length"
    return "".join(choice["text"] for choice in choices)


def descriptors_of(process: psutil.Process) -> list[int]:
    return [int(file.name) for file in Path(f"/proc/{process.pid}/fd").iterdir()]


async def reach(server: ServerProcess, metric: str, value: float) -> None:
    await asyncio.to_thread(until, lambda: server.metric(metric) >= value, f"{metric} did not come to {value}")


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine that is busy
@pytest.mark.usefixtures("many_files")
async def test_an_engine_that_ends_under_1100_streams_costs_none_of_them_and_none_of_200_that_come_meanwhile(
    start_server: StartServer,
) -> None:
    server = start_server(
        module="tests.integration.light_server",
        constants={"orcinus.engine.supervision.liveness.SILENCE_S": PATIENCE_S},
    )
    engine = await asyncio.to_thread(until, server.engine, "there was no engine")
    twins = await text_of(server, RUNNING), await text_of(server, WAITING)
    num_tokens = server.metric("orcinus_generation_tokens_total")

    running = [asyncio.create_task(text_of(server, RUNNING)) for _ in range(NUM_RUNNING)]
    await reach(server, "orcinus_generation_tokens_total", num_tokens + NUM_RUNNING)
    engine.send_signal(signal.SIGSTOP)
    waiting = [asyncio.create_task(text_of(server, WAITING)) for _ in range(NUM_WAITING)]
    await reach(server, "orcinus_http_requests_in_progress", NUM_RUNNING + NUM_WAITING)
    engine.kill()
    waiting += [asyncio.create_task(text_of(server, WAITING)) for _ in range(NUM_LATE)]

    assert await asyncio.gather(*running) == [twins[0]] * NUM_RUNNING
    assert await asyncio.gather(*waiting) == [twins[1]] * (NUM_WAITING + NUM_LATE)
    successor = await asyncio.to_thread(until, server.engine, "there was no engine")
    assert max(descriptors_of(successor)) < FD_SETSIZE
    assert server.metric("orcinus_engine_restarts_total") == 1
    assert server.metric("orcinus_requests_quarantined_total") == 0
