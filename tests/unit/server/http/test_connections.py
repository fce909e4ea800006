"""Over real sockets: clients that leave, streams that fall silent, readers that do not read, and the drain."""

import asyncio
import contextlib
import json
import re
import resource
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orcinus.config.settings import load_settings
from orcinus.engine.errors import EngineUnavailableError
from orcinus.server.http import body
from orcinus.server.http import connection as http_protocol
from orcinus.server.process.listening import ListenError, listen
from orcinus.server.process.open_files import fit_open_files
from orcinus.server.process.server import DrainingServer
from tests.unit.engine.fakes import FakeExecutor, alphabet, says
from tests.unit.server.serving import Gate, Serving, events_of, listening, serving, until


class Connection:
    """One HTTP/1.1 exchange, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def post(self, path: str, **body: Any) -> None:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
        self.writer.write(head.encode() + b"content-length: %d\r\n\r\n%b" % (len(content), content))
        await self.writer.drain()

    async def get(self, path: str) -> None:
        self.writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
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
    """With a small buffer in the system: what is not read soon has to wait in the server."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plain)
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


LONG_ANSWER = {"prompt": "\x01" * 500_000, "return_token_strs": True}  # longer than what the system takes in itself


@pytest.mark.slow
async def test_a_client_that_does_not_read_its_stream_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT_S", 0.2)
    info = {"max_model_len": 200_000, "num_kv_blocks": 20_000}
    async with serving(tmp_path, info=info) as served, listening(served) as (server, port):
        async with connect(port) as client:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await client.post("/v1/completions", prompt="a", max_tokens=190_000, stream=True, logprobs=20)
            await until(lambda: served.engine.num_running == 1)
            await until(lambda: served.engine.num_running == 0, timeout_s=30)
            await until(lambda: not server.server_state.connections)
        assert await served.metric("orcinus_requests_total", outcome="abort") == 1


@pytest.mark.parametrize("is_much", [True, False])
async def test_a_client_that_does_not_read_its_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_much: bool
) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT_S", 0.2)
    async with serving(tmp_path) as served, listening(served) as (server, port), connect(port) as client:
        await until(lambda: len(connections_of(server)) == 1)
        if not is_much:  # for the app to be told to wait
            connections_of(server)[0].transport.set_write_buffer_limits(2**30)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.post("/tokenize", **LONG_ANSWER)
        await until(lambda: has_unread(server), timeout_s=30)
        await until(lambda: not server.server_state.connections)


async def test_a_client_that_reads_slowly_is_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, listening(served) as (server, port), connect(port) as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.post("/tokenize", **LONG_ANSWER)
        await until(lambda: has_unread(server), timeout_s=30)
        [connection] = connections_of(server)
        former_size = connection.transport.get_write_buffer_size()
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert await client.status() == 200
        while connection.transport.get_write_buffer_size() >= former_size:
            await client.reader.read(2**16)
        connection._check_reader(former_size)  # as the timer would
        assert await client.reader.read(2**16)
        client.leave()


def has_unread(server: DrainingServer) -> bool:
    return any(connection.transport.get_write_buffer_size() for connection in connections_of(server))


def connections_of(server: DrainingServer) -> list[Any]:
    return [*server.server_state.connections]


HEAD = b"GET /live HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "words"),
    [
        (HEAD + b"x-long: " + b"a" * 3000 + b"\r\n\r\n", 431, "at most 2000 bytes"),
        (HEAD + b"x-long: " + b"a" * 3000, 431, "at most 2000 bytes besides its body"),
        (HEAD + b"x: y\r\n" * 30 + b"\r\n", 431, "at most 20 headers, got 31"),
        (HEAD + b"x: y\r\n" * 60, 431, "at most 20 headers, got 41"),
        (b"GET /" + b"a" * 600 + b" HTTP/1.1\r\n\r\n", 414, "at most 500 bytes"),
        (b"\r\n" * 2000, 431, "at most 2000 bytes"),
        (CHUNKED + b"2;" + b"a" * 3000 + b"\r\n{}", 413, "at most 2000 bytes besides its body"),
        (CHUNKED + b"2\r\n{}\r\n0\r\nx-trailer: " + b"a" * 3000, 431, "at most 2000 bytes besides its body"),
        (CHUNKED + b"1\r\n \r\n" * 1000, 413, "at most 2000 bytes besides its body"),
        (CHUNKED + b"1\r\n \r\n" * 1000 + b"1\r\n", 413, "at most 2000 bytes besides its body"),
        (b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(range(256)), 400, "not valid HTTP"),
        (b"hello\r\n\r\n", 400, "not valid HTTP"),
    ],
)
async def test_what_goes_past_a_bound_around_a_body_is_answered_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes, status: int, words: str
) -> None:
    for name, bound in {"MAX_HEAD_BYTES": 2000, "MAX_HEADERS": 20, "MAX_TARGET_BYTES": 500}.items():
        monkeypatch.setattr(http_protocol, name, bound)
    async with serving(tmp_path) as served, listening(served) as (_, port), connect(port) as client:
        client.writer.write(raw)
        assert await client.status() == status
        headers, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
        assert b"content-type: application/json" in headers
        assert words in json.loads(body)["error"]["message"]


async def test_small_chunks_of_a_small_body_are_fine(tmp_path: Path) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    async with serving(tmp_path) as served, listening(served) as (_, port), connect(port) as client:
        client.writer.write(CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert await client.status() == 200


@pytest.mark.parametrize(
    "beginning",
    [b"GET /live HT", b"\r\n", HEAD + b"\r\n" + HEAD, HEAD + b"content-length: 5\r\n\r\n12"],
    ids=["a part of a head", "a line without anything", "a part of a second head", "the rest of a body"],
)
async def test_a_connection_on_which_no_request_comes_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.1)
    async with serving(tmp_path) as served, listening(served) as (server, port), connect(port) as client:
        client.writer.write(beginning)
        is_answered = beginning.startswith(HEAD)
        if is_answered:
            assert (await client.reader.readuntil(b'"live"}')).startswith(b"HTTP/1.1 200")
        dribbling = asyncio.create_task(dribble(client.writer, b"\r\n" if beginning == b"\r\n" else b"0"))
        with contextlib.suppress(ConnectionError):
            await client.reader.read()
        dribbling.cancel()
        await until(lambda: not server.server_state.connections)


async def dribble(writer: asyncio.StreamWriter, part: bytes) -> None:
    while True:
        writer.write(part)
        await asyncio.sleep(0.02)


def is_open(server: DrainingServer) -> bool:
    return bool(server.server_state.connections)


@pytest.mark.parametrize("has_asked", [False, True])
async def test_a_connection_that_asks_nothing_is_closed_without_a_word_when_its_time_is_over(
    tmp_path: Path, has_asked: bool
) -> None:
    async with (
        serving(tmp_path) as served,
        listening(served, connection_keep_alive_s=0.05) as (_, port),
        connect(port) as client,
    ):
        if has_asked:
            client.writer.write(HEAD + b"\r\n")
            assert b"connection:" not in await client.reader.readuntil(b'"live"}')
        assert await client.reader.read() == b""


@pytest.mark.parametrize("has_asked", [False, True])
async def test_it_is_left_open_while_there_is_room_for_as_many_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_asked: bool
) -> None:
    """Looked at three times as soon as it may be; then others come, and it goes."""
    looks: list[bool] = []
    handler = http_protocol.BoundedProtocol.timeout_keep_alive_handler

    def noted(connection: Any) -> None:
        handler(connection)
        looks.append(connection.transport.is_closing())

    monkeypatch.setattr(http_protocol.BoundedProtocol, "timeout_keep_alive_handler", noted)
    monkeypatch.setattr(http_protocol, "FRESH_TIMEOUT_S", 0.02)
    monkeypatch.setattr(http_protocol, "IDLE_TIMEOUT_S", 0.02)
    async with (
        serving(tmp_path) as served,
        listening(served, max_connections=3) as (_, port),
        connect(port) as client,
    ):
        if has_asked:
            client.writer.write(HEAD + b"\r\n")
            await client.reader.readuntil(b'"live"}')
        await until(lambda: len(looks) >= 3)
        assert not any(looks)
        async with connect(port), connect(port):
            await until(lambda: any(looks))


async def test_load_balancers_close_connections_before_this_server_does() -> None:
    assert load_settings().connection_keep_alive_s > 600


async def test_the_time_for_a_head_is_not_that_of_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    gate = Gate()
    async with (
        serving(tmp_path, FakeExecutor(says("Hi"), before_step=gate), keep_alive_s=0.02) as served,
        listening(served) as (_, port),
        connect(port) as client,
    ):
        content = b'{"prompt": "a", "stream": true}'
        client.writer.write(POST + b"content-length: %d\r\n\r\n%b" % (len(content), content) + HEAD + b"x: ")
        seen = b""
        while seen.count(b": keep-alive") < 8:
            client.writer.write(b"y")
            seen += await client.reader.readuntil(b"\n\n")
        gate.open()
        while b"[DONE]" not in seen:
            seen += await client.reader.readexactly(1)


async def test_one_connection_too_many_is_refused_and_room_is_made_when_one_goes(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as served,
        listening(served, max_connections=2) as (server, port),
        connect(port) as first,
        connect(port),
    ):
        await until(lambda: len(server.server_state.connections) == 2)
        for _ in range(3):  # those that are turned away take no place
            async with connect(port) as third:
                assert await third.status() == 503
                rest = await third.reader.read()
                assert b"retry-after: 1" in rest
                assert b"at most 2 connections" in rest
        first.leave()
        await until(lambda: len(server.server_state.connections) == 1)
        async with connect(port) as fourth:
            await fourth.get("/live")
            assert await fourth.status() == 200
        name = "orcinus_http_requests_total"
        assert await served.metric(name, method="other", route="connection", status="503") == 3


async def test_a_client_that_is_refused_while_it_sends_can_read_why(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, listening(served, max_connections=1) as (server, port), connect(port):
        await until(lambda: is_open(server))
        async with connect(port) as second:
            second.writer.write(POST + b"content-length: 4000000\r\n\r\n" + b" " * 4_000_000)
            await second.writer.drain()
            assert await second.status() == 503
            assert b"at most 1 connections" in await second.reader.read()


async def test_of_a_flood_of_connections_only_so_many_are_kept_to_read_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MAX_TURNED_AWAY", 2)
    monkeypatch.setattr(http_protocol, "LINGER_S", 60.0)
    async with serving(tmp_path) as served, listening(served, max_connections=1) as (server, port), connect(port):
        await until(lambda: is_open(server))
        async with contextlib.AsyncExitStack() as opened:
            clients = [await opened.enter_async_context(connect(port)) for _ in range(6)]
            for client in clients:
                assert await client.status() == 503
            await until(lambda: len(server.server_state.connections) <= 3)


async def test_what_a_connection_answers_has_an_id_a_date_a_line_and_a_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orcinus.server.http.throttled_log.LOGGED_EVERY_S", 0.5)
    caplog.set_level("INFO")
    async with serving(tmp_path) as served, listening(served) as (_, port):
        ids = []
        for _ in range(5):
            async with connect(port) as client:
                client.writer.write(b"no HTTP\r\n\r\n")
                assert await client.status() == 400
                head = (await client.reader.read()).partition(b"\r\n\r\n")[0].decode()
            headers = dict(line.split(": ", 1) for line in head.split("\r\n") if line)
            assert headers["date"].endswith(" GMT")
            ids.append(headers["x-request-id"])
        assert len({*ids}) == 5
        name = "orcinus_http_requests_total"
        assert await served.metric(name, method="other", route="connection", status="400") == 5
        await until(lambda: num_logged(caplog.messages) == 5)
        assert f"connection 400 id={ids[0]}: the request is not valid HTTP" in caplog.messages
    assert "Invalid HTTP" not in caplog.text


def num_logged(messages: list[str]) -> int:
    """Of how many connections lines tell, which are fewer than the connections if the machine is fast enough."""
    more = "more connections closed with 400: "
    each = sum(message.startswith("connection 400 ") for message in messages)
    return each + sum(int(message.removeprefix(more)) for message in messages if message.startswith(more))


@pytest.mark.parametrize(
    ("path", "has_both"), [(b"/v1/messages", True), (b"/llm/v1/messages", True), (b"/llm/v1/completions", False)]
)
async def test_what_the_connection_answers_has_anthropics_id_on_its_paths(
    tmp_path: Path, path: bytes, has_both: bool
) -> None:
    async with serving(tmp_path) as served, listening(served, root_path="/llm") as (_, port), connect(port) as client:
        client.writer.write(b"POST %b HTTP/1.1\r\n\r\n" % path)  # without a host
        assert await client.status() == 400
        head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
    assert headers.get("request-id") == (headers["x-request-id"] if has_both else None)
    assert json.loads(body).get("request_id") == headers.get("request-id")


async def test_no_connection_is_said_to_be_cut_off_where_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as served, listening(served) as (server, port):
        server._abort_connections()
        assert "cut off" not in caplog.text
        async with connect(port):
            await until(lambda: server.server_state.connections)
            server._abort_connections()
            assert "1 connections were still open and were cut off" in caplog.text


async def test_no_trailer_is_taken_for_a_header(tmp_path: Path) -> None:
    content = b'{"prompt": "a", "max_tokens": 1}'
    chunk, trailer = b"%x\r\n%b\r\n0\r\n" % (len(content), content), b"x-request-id: forged\r\n\r\n"
    gate = Gate()
    async with (
        serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served,
        listening(served) as (server, port),
        connect(port) as client,
    ):
        client.writer.write(CHUNKED + chunk + trailer)
        await until(lambda: served.engine.num_queued + served.engine.num_running == 1)
        [connection] = connections_of(server)
        gate.open()
        assert b"x-request-id" not in dict(connection.headers)
        assert await client.status() == 200


@pytest.mark.parametrize(
    ("soft", "hard", "max_connections", "allowed", "fitting"),
    [
        (1024, 20_000, 4096, 4096 + 128, 4096),
        (1024, resource.RLIM_INFINITY, 4096, 4096 + 128, 4096),
        (1024, 2000, 4096, 2000, 2000 - 128),
        (1024, 1024, 512, 1024, 512),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, resource.RLIM_INFINITY, 4096),
    ],
)
def test_the_limit_on_open_files_is_raised_as_far_as_connections_need_it_and_what_does_not_fit_is_logged(
    soft: int,
    hard: int,
    max_connections: int,
    allowed: int,
    fitting: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    assert fit_open_files(max_connections) == fitting
    assert limits[-1] == (allowed, hard)
    if fitting < max_connections:
        assert f"at most {fitting} connections can be open at once, not {max_connections}" in caplog.text
        assert f"may open {allowed} files" in caplog.text
    else:
        assert not caplog.records


async def test_requests_sent_without_waiting_are_answered_in_order_up_to_a_bound(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, listening(served) as (_, port):
        async with connect(port) as client:
            client.writer.write((HEAD + b"\r\n") * 10)
            for _ in range(10):
                assert b" 200 " in await client.reader.readuntil(b'"live"}')
        async with connect(port) as client:
            client.writer.write((HEAD + b"\r\n") * 1000)
            answers = await client.reader.read()
            assert statuses_of(answers) == [200] * (1 + http_protocol.MAX_IN_LINE) + [429]
            assert answers.count(b"connection: close\r\n") == 1
            assert b"retry-after: 1\r\n" in answers
        name = "orcinus_http_requests_total"
        assert await served.metric(name, method="other", route="connection", status="429") == 1


def statuses_of(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (b"no HTTP\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n", 414),
        (HEAD + b"x: y\r\n" * 150 + b"\r\n", 431),
        (HEAD + b"x: " + b"y" * 70_000 + b"\r\nz: z\r\n", 431),
        (CHUNKED + b"no size\r\n", 400),
        (CHUNKED + b"1\r\n \r\n" * 100_000, 413),
    ],
    ids=["no HTTP", "no host", "a long URL", "many headers", "a long header", "a wrong chunk", "tiny chunks"],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_what_was_asked_before_a_request_that_is_refused_is_answered_before_it(
    tmp_path: Path, wrong: bytes, status: int, is_streamed: bool
) -> None:
    gate = Gate()
    content = json.dumps({"prompt": "a", "max_tokens": 5, "stream": is_streamed}).encode()
    async with (
        serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served,
        listening(served) as (server, port),
        connect(port) as client,
    ):
        client.writer.write(POST + b"content-length: %d\r\n\r\n%b" % (len(content), content))
        gate.let(2)
        await until(lambda: served.engine.num_running == 1)
        client.writer.write(HEAD + b"\r\n" + wrong)
        [connection] = connections_of(server)
        await until(lambda: connection._last_refusal is not None or connection.flow.read_paused)
        gate.open()
        answers = await client.reader.read()
        assert statuses_of(answers) == [200, 200, status]
        assert (b"[DONE]" in answers) == is_streamed
        assert answers.count(b"connection: close\r\n") == 1


async def test_what_comes_behind_a_request_that_ends_the_connection_costs_it_nothing(tmp_path: Path) -> None:
    gate = Gate()
    content = b'{"prompt": "a", "max_tokens": 5}'
    async with (
        serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served,
        listening(served) as (_, port),
        connect(port) as client,
    ):
        head = POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(content)
        client.writer.write(head + content + b"\r\n" + HEAD + b"\r\n")
        await until(lambda: served.engine.num_queued + served.engine.num_running == 1)
        gate.open()
        assert statuses_of(await client.reader.read()) == [200]


@pytest.mark.parametrize(("length", "is_kept"), [(5000, True), (10**6, False)])
async def test_a_connection_is_kept_where_the_body_of_a_refused_request_is_short(
    tmp_path: Path, length: int, is_kept: bool
) -> None:
    async with serving(tmp_path) as served, listening(served) as (_, port), connect(port) as client:
        client.writer.write(POST.replace(b"json", b"xml") + b"content-length: %d\r\n\r\n" % length)
        assert await client.status() == 415
        assert (b"connection: close" in await client.reader.readuntil(b"\r\n\r\n")) != is_kept
        client.writer.write(b" " * length + HEAD + b"connection: close\r\n\r\n")
        assert (b"200 OK" in await client.reader.read()) == is_kept


async def test_an_answer_to_head_has_the_head_of_the_answer_to_get_and_ends_there(tmp_path: Path) -> None:
    asked = b"/v1/models HTTP/1.1\r\nhost: localhost\r\nx-request-id: same\r\n\r\n"
    async with serving(tmp_path) as served, listening(served) as (_, port), connect(port) as client:
        client.writer.write(b"GET " + asked)
        got = await client.reader.readuntil(b"\r\n\r\n")
        body = await client.reader.readuntil(b"]}")
        assert b"content-length: %d\r\n" % len(body) in got
        for _ in range(2):
            client.writer.write(b"HEAD " + asked)
            told = await client.reader.readuntil(b"\r\n\r\n")
            assert without_date(told) == without_date(got)


def without_date(head: bytes) -> list[bytes]:
    return [line for line in head.split(b"\r\n") if not line.startswith(b"date: ")]


OLD = b"POST %b HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"


def old_post(path: bytes, content: bytes, headers: bytes = b"") -> bytes:
    return OLD % (path, len(content), headers, content)


@pytest.mark.parametrize("headers", [b"", b"connection: keep-alive\r\n", b"expect: 100-continue\r\n"])
async def test_a_stream_to_http_1_0_has_no_chunks_and_ends_with_the_connection(tmp_path: Path, headers: bytes) -> None:
    content = b'{"prompt": "a", "stream": true}'
    async with (
        serving(tmp_path, FakeExecutor(says("Hello"))) as served,
        listening(served) as (_, port),
        connect(port) as client,
    ):
        client.writer.write(old_post(b"/v1/completions", content, headers))
        head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close" in head
    assert b"transfer-encoding" not in head
    assert b"keep-alive" not in head
    assert "".join(event["choices"][0]["text"] for event in events_of(body.decode())) == "Hello"


@pytest.mark.parametrize("is_kept", [True, False])
async def test_http_1_0_keeps_a_connection_where_it_asks_to_and_the_answer_has_a_length(
    tmp_path: Path, is_kept: bool
) -> None:
    asked = b"Connection: Keep-Alive\r\n" if is_kept else b""
    async with serving(tmp_path) as served, listening(served) as (_, port), connect(port) as client:
        head, post = b"GET /live HTTP/1.0\r\n" + asked + b"\r\n", old_post(b"/tokenize", b'{"prompt": "a"}', asked)
        client.writer.write(head)
        answer = await client.reader.readuntil(b'"live"}')
        assert (b"\r\nconnection: keep-alive\r\n" in answer) == is_kept
        assert (b"\r\nconnection: close\r\n" in answer) != is_kept
        if not is_kept:
            assert await client.reader.read() == b""
            return
        client.writer.write(post + head.replace(b"GET", b"HEAD") + b"GET /nothing HTTP/1.0\r\n\r\n")
        rest = await client.reader.read()
        assert (rest.count(b"HTTP/1.1 200 "), rest.count(b"HTTP/1.1 404 ")) == (2, 1)
        assert rest.count(b"\r\nconnection: keep-alive\r\n") == 2
        assert b"transfer-encoding" not in rest


async def test_a_refusal_to_http_1_0_before_a_long_body_has_come_ends_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, listening(served) as (_, port), connect(port) as client:
        post = b"POST /v1/completions HTTP/1.0\r\nconnection: keep-alive\r\ncontent-type: text/plain\r\n"
        client.writer.write(post + b"content-length: 1000000\r\n\r\n")
        head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 415 ")
        assert (head.count(b"\r\nconnection: "), b"keep-alive" in head) == (1, False)
        assert json.loads(body)


async def test_a_connection_is_idle_once_the_rest_of_a_refused_body_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    async with serving(tmp_path) as served, listening(served) as (server, port), connect(port) as client:
        client.writer.write(POST.replace(b"json", b"xml") + b"content-length: 4\r\n\r\n1")
        assert await client.status() == 415
        await client.reader.readuntil(b"}}")
        [connection] = connections_of(server)
        client.writer.write(b"234")
        await until(lambda: connection._is_between_requests)
        assert connection._head_timer is None
        assert connection.timeout_keep_alive_task is not None
        client.writer.write(b"\r\n" + HEAD + b"\r\n")
        assert (await client.reader.readuntil(b'"live"}')).startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_leaves_with_requests_in_line_frees_its_slot(tmp_path: Path) -> None:
    gate = Gate()
    async with (
        serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served,
        listening(served) as (_, port),
        connect(port) as leaver,
    ):
        content = b'{"prompt": "a", "max_tokens": 200, "stream": true}'
        leaver.writer.write(POST + b"content-length: %d\r\n\r\n%b" % (len(content), content))
        leaver.writer.write((HEAD + b"\r\n") * 3)
        gate.let(3)
        await until(lambda: served.engine.stats.num_running == 1)
        leaver.leave()
        await until(lambda: served.engine.num_queued + served.engine.num_running == 0)
        gate.open()


async def test_bodies_may_not_take_more_together_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "MAX_FULL_BODIES", 2)
    gate = Gate()
    asked = {"prompt": "a", "user": "x" * 900}
    async with (
        serving(tmp_path, FakeExecutor(says("Hi"), before_step=gate), max_body_bytes=1024) as served,
        listening(served) as (_, port),
        connect(port) as first,
        connect(port) as second,
        connect(port) as third,
    ):
        for client in (first, second):
            await client.post("/v1/completions", **asked)
        await until(lambda: served.engine.num_queued + served.engine.num_running == 2)
        await third.post("/v1/completions", **asked)
        assert await third.status() == 429
        rest = await third.reader.read()
        assert b"at most 2048 bytes together" in rest
        assert b"retry-after: 1" in rest
        gate.open()
        assert await first.status() == 200
        assert await second.status() == 200
        await served.complete(**asked)


@contextlib.asynccontextmanager
async def draining(tmp_path: Path, gate: Gate, **settings: Any) -> AsyncIterator[tuple[Serving, DrainingServer, int]]:
    executor = FakeExecutor(says("Hello"), before_step=gate)
    async with serving(tmp_path, executor) as served, listening(served, **settings) as (server, port):
        try:
            yield served, server, port
        finally:
            gate.open()  # a test that fails ends, too


async def test_sigterm_lets_streams_finish_and_refuses_new_work(tmp_path: Path) -> None:
    gate = Gate()
    async with draining(tmp_path, gate) as (served, server, port):
        async with connect(port) as client, connect(port) as late, connect(port) as probe:
            await client.post("/v1/completions", prompt="a", stream=True)
            gate.let(2)
            assert await client.status() == 200
            server.handle_exit(signal.SIGTERM, None)
            await until(lambda: served.app.state.context.intake.is_closed)
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


@pytest.mark.parametrize("end", ["second signal", "time over", "engine gone"])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_what_has_not_begun_to_answer_when_all_is_over_is_a_503(
    tmp_path: Path, end: str, is_streamed: bool
) -> None:
    gate = Gate()
    settings = {"drain_timeout_s": 0.05} if end == "time over" else {}
    async with draining(tmp_path, gate, **settings) as (served, server, port), connect(port) as client:
        await client.post("/v1/completions", prompt="a", stream=is_streamed)
        await until(lambda: served.engine.num_queued + served.engine.num_running == 1)
        if end == "engine gone":
            gone = asyncio.create_task(served.engine.aclose())
        else:
            server.handle_exit(signal.SIGTERM, None)
        if end == "second signal":
            server.handle_exit(signal.SIGTERM, None)
        assert await client.status() == 503
        rest = await client.reader.read()
        assert b"connection: close" in rest
        assert b"retry-after: " in rest
        gate.open()
        if end == "engine gone":
            await gone


HALF = POST + b"content-length: 15\r\n\r\n{"


def num_entering(served: Serving) -> int:
    return len(served.app.state.context.intake._inside)


async def test_sigterm_lets_requests_come_in_that_are_still_being_read_or_tokenized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, may_encode = Gate(), asyncio.Event()
    async with draining(tmp_path, gate) as (served, server, port):
        encode = served.engine.encode

        async def encode_when_told(text: str, **options: Any) -> list[int]:
            await may_encode.wait()
            return await encode(text, **options)

        monkeypatch.setattr(served.engine, "encode", encode_when_told)
        async with connect(port) as reading, connect(port) as encoding, connect(port) as late:
            reading.writer.write(HALF)
            await encoding.post("/v1/completions", prompt="a")
            await until(lambda: num_entering(served) == 2)
            server.handle_exit(signal.SIGTERM, None)
            await until(lambda: served.app.state.context.intake.is_closed)
            await late.post("/v1/completions", prompt="b")
            assert await late.status() == 503
            reading.writer.write(b'"prompt": "a"}')
            may_encode.set()
            gate.open()
            for client in (reading, encoding):
                assert await client.status() == 200
        await until(lambda: server.should_exit)


@pytest.mark.parametrize("has_time", [True, False])
async def test_a_body_that_never_comes_holds_the_end_up_until_the_second_sigterm_or_the_drain_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, has_time: bool
) -> None:
    async with draining(tmp_path, Gate(), drain_timeout_s=60 if has_time else 0.05) as (served, server, port):
        async with connect(port) as client:
            client.writer.write(HALF)
            await until(lambda: num_entering(served) == 1)
            server.handle_exit(signal.SIGTERM, None)
            if has_time:
                await until(lambda: served.app.state.context.intake.is_closed)
                assert not server.should_exit
                server.handle_exit(signal.SIGTERM, None)
            assert await client.status() == 503
            assert b'"draining"' in await client.reader.read()
        await until(lambda: server.should_exit)
    assert not [record for record in caplog.records if record.exc_info]


async def test_from_the_first_signal_on_every_answer_is_the_last_on_its_connection(tmp_path: Path) -> None:
    """While a body that does not come holds up the end."""
    gate = Gate()
    async with (
        draining(tmp_path, gate) as (served, server, port),
        connect(port) as holding,
        connect(port) as streaming,
        connect(port) as probing,
        connect(port) as asking,
        connect(port) as erring,
    ):
        holding.writer.write(HALF)
        await until(lambda: num_entering(served) == 1)
        content = b'{"prompt": "a", "stream": true}'
        streaming.writer.write(POST + b"content-length: %d\r\n\r\n%b" % (len(content), content))
        gate.let(2)
        assert b"connection:" not in await streaming.reader.readuntil(b"\r\n\r\n")
        for client in (probing, asking):
            client.writer.write(HEAD + b"\r\n")
            assert b"connection:" not in await client.reader.readuntil(b'"live"}')
        server.handle_exit(signal.SIGTERM, None)
        probing.writer.write(HEAD + b"\r\n")
        erring.writer.write(b"no HTTP\r\n\r\n")
        await until(lambda: served.app.state.context.intake.is_closed)
        asking.writer.write(POST + b"content-length: %d\r\n\r\n%b" % (len(content), content))
        async with asyncio.timeout(20):
            for client, status in ((probing, b"200"), (asking, b"503"), (erring, b"400")):
                head, _, _ = (await client.reader.read()).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 " + status)
                assert head.count(b"\r\nconnection: close") == 1
            gate.open()
            assert b"[DONE]" in await streaming.reader.read()
        assert not server.should_exit
        holding.leave()


async def test_a_hangup_has_the_keys_read_again_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "keys"
    file.write_text("old\n")
    async with serving(tmp_path, api_key_file=str(file)) as served, listening(served) as (server, _):
        await until(lambda: server._loop)
        file.write_text("new\n")
        server.handle_hangup(signal.SIGHUP, None)
        await until(lambda: "API keys read again: 1 are valid" in caplog.text)
        served.app.state.keys.check(b"Bearer new")
        assert not server._num_signals
        assert not server.should_exit


async def test_idle_server_stops_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, listening(served, drain_timeout_s=3600) as (server, _):
        async with asyncio.timeout(60):
            server.handle_exit(signal.SIGTERM, None)
            await until(lambda: server.should_exit)
        assert server.failure is None


async def test_the_end_of_the_engine_is_the_end_of_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, listening(served) as (server, _):
        await served.engine.aclose()
        await until(lambda: server.should_exit)
        assert isinstance(server.failure, EngineUnavailableError)


def test_an_address_that_is_taken_is_an_error_with_its_name() -> None:
    [taken] = listen("127.0.0.1", 0)
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1 port {port}"):
            listen("127.0.0.1", port)
    with pytest.raises(ListenError):
        listen("no-such-host.invalid", 0)
