"""Over real sockets: clients that leave, streams that fall silent, readers that do not read, and the drain."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineUnavailableError
from server import answers
from server.lifecycle import DrainingServer, ListenError, listen
from tests.unit.engine.fakes import FakeExecutor, alphabet, says
from tests.unit.server.serving import Gate, Serving, events_of, listening, serving, until


class Connection:
    """One HTTP/1.1 exchange, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def post(self, path: str, **body: Any) -> None:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        self.writer.write(head.encode() + b"content-length: %d\r\n\r\n%b" % (len(content), content))
        await self.writer.drain()

    async def get(self, path: str) -> None:
        self.writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        await self.writer.drain()

    async def status(self) -> int:
        return int((await self.reader.readuntil(b"\r\n")).split()[1])

    async def rest(self, seen: bytes = b"") -> str:
        """The body of a chunked response, to its end; `seen` is what was read of it, headers included."""
        data = seen + await self.reader.read()
        body, rest = b"", data.partition(b"\r\n\r\n")[2]
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return body.decode()

    def leave(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_leaves_frees_its_slot_for_the_next(tmp_path: Path, is_streamed: bool) -> None:
    gate = Gate()
    executor = FakeExecutor(alphabet, before_step=gate)
    async with serving(tmp_path, executor, info={"max_num_seqs": 1}) as served, listening(served) as (_, port):
        async with connect(port) as leaver, connect(port) as waiter:
            await leaver.post("/v1/completions", prompt="a", max_tokens=200, stream=is_streamed)
            gate.let(3)
            await until(lambda: served.engine.stats.num_running == 1)
            await waiter.post("/v1/completions", prompt="b", max_tokens=2, stream=True)
            await until(lambda: served.engine.num_queued == 1)
            leaver.leave()
            await until(lambda: served.engine.num_queued + served.engine.num_running == 1)
            gate.open()
            assert await waiter.status() == 200
            assert "[DONE]" in await waiter.rest()
        assert await served.metric("orcinus_requests_total", outcome="abort") == 1
        assert sum(plan.num_tokens for plan in executor.plans) < 100


async def test_a_client_that_leaves_the_queue_is_never_run(tmp_path: Path) -> None:
    gate = Gate()
    executor = FakeExecutor(alphabet, before_step=gate)
    async with serving(tmp_path, executor, info={"max_num_seqs": 1}) as served, listening(served) as (_, port):
        async with connect(port) as runner, connect(port) as leaver:
            await runner.post("/v1/completions", prompt="a", max_tokens=5)
            await until(lambda: served.engine.num_queued + served.engine.num_running == 1)
            await leaver.post("/v1/completions", prompt="b", max_tokens=5)
            await until(lambda: served.engine.num_queued + served.engine.num_running == 2)
            leaver.leave()
            await until(lambda: served.engine.num_queued + served.engine.num_running == 1)
            gate.open()
            assert await runner.status() == 200
        assert {new.token_ids[0] for plan in executor.plans for new in plan.new_requests} == {ord("a")}


async def test_silence_is_broken_by_comments_and_nothing_else(tmp_path: Path) -> None:
    gate = Gate()
    executor = FakeExecutor(says("Hi"), before_step=gate)
    async with (
        serving(tmp_path, executor, keep_alive_s=0.02) as served,
        listening(served) as (_, port),
        connect(port) as client,
    ):
        await client.post("/v1/completions", prompt="a", stream=True)
        seen = b""
        while seen.count(b": keep-alive\n\n") < 3:
            seen += await client.reader.read(1000)
        gate.open()
        body = await client.rest(seen)
    events = [event for event in body.split("\n\n") if not event.startswith(":")]
    assert "".join(chunk["choices"][0]["text"] for chunk in events_of("\n\n".join(events))) == "Hi"


async def test_no_byte_is_sent_while_a_prompt_waits_so_that_errors_keep_their_status(tmp_path: Path) -> None:
    gate = Gate()
    async with (
        serving(tmp_path, FakeExecutor(before_step=gate)) as served,
        listening(served) as (_, port),
        connect(port) as client,
    ):
        await client.post("/v1/completions", prompt="a", stream=True, timeout=0.1)
        assert await client.status() == 408
        gate.open()


async def test_a_client_that_does_not_read_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WRITE_TIMEOUT_S", 0.2)
    info = {"max_model_len": 200_000, "num_kv_blocks": 20_000}
    async with serving(tmp_path, info=info, keep_alive_s=0.05) as served, listening(served) as (_, port):
        async with connect(port) as client:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await client.post("/v1/completions", prompt="a", max_tokens=190_000, stream=True, logprobs=20)
            await until(lambda: served.engine.num_running == 1)
            await until(lambda: served.engine.num_running == 0, timeout_s=30)
        assert await served.metric("orcinus_requests_total", outcome="abort") == 1


@contextlib.asynccontextmanager
async def draining(tmp_path: Path, gate: Gate, **settings: Any) -> AsyncIterator[tuple[Serving, DrainingServer, int]]:
    executor = FakeExecutor(says("Hello"), before_step=gate)
    async with serving(tmp_path, executor) as served, listening(served, **settings) as (server, port):
        yield served, server, port


async def test_sigterm_lets_streams_finish_and_refuses_new_work(tmp_path: Path) -> None:
    gate = Gate()
    async with draining(tmp_path, gate) as (served, server, port):
        async with connect(port) as client, connect(port) as late, connect(port) as probe:
            await client.post("/v1/completions", prompt="a", stream=True)
            gate.let(2)
            assert await client.status() == 200
            server.handle_exit(signal.SIGTERM, None)
            await until(lambda: served.engine.state == "draining")
            await probe.get("/ready")
            assert await probe.status() == 503
            await late.post("/v1/completions", prompt="b")
            assert await late.status() == 503
            assert b"retry-after" in await late.reader.read()
            assert not server.should_exit
            gate.open()
            texts = [chunk["choices"][0]["text"] for chunk in events_of(await client.rest())]
            assert "".join(texts) == "Hello"
        await until(lambda: server.should_exit)


@pytest.mark.parametrize("has_time", [True, False])
async def test_second_sigterm_or_time_over_ends_streams_with_an_error_event(tmp_path: Path, has_time: bool) -> None:
    gate = Gate()
    async with draining(tmp_path, gate, drain_timeout_s=60 if has_time else 0.05) as (_, server, port):
        async with connect(port) as client:
            await client.post("/v1/completions", prompt="a", stream=True)
            gate.let(2)
            assert await client.status() == 200
            server.handle_exit(signal.SIGTERM, None)
            if has_time:
                server.handle_exit(signal.SIGTERM, None)
            *_, last = events_of(await client.rest())
            assert last["error"]["type"] == "server_error"
            gate.open()
        await until(lambda: server.should_exit)


async def test_idle_server_stops_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, listening(served) as (server, _):
        async with asyncio.timeout(5):
            server.handle_exit(signal.SIGTERM, None)
            await until(lambda: server.should_exit)
        assert server.failure is None


async def test_the_end_of_the_engine_is_the_end_of_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, listening(served) as (server, _):
        await served.engine.aclose()
        await until(lambda: server.should_exit)
        assert isinstance(server.failure, EngineUnavailableError)


def test_an_address_that_is_taken_is_an_error_with_its_name() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1 port {port}"):
            listen("127.0.0.1", port)
    with pytest.raises(ListenError):
        listen("no-such-host.invalid", 0)
