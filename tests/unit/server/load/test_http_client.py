"""The HTTP client against a server that says byte for byte what the test tells it to."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest

from orcinus.config.settings import SettingsError
from orcinus.server.load.answers import RequestFailedError
from orcinus.server.load.http_client import HttpClient

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def whole(body: bytes, head: str = "200 OK", more: str = "") -> bytes:
    return (
        f"HTTP/1.1 {head}\r\nContent-Type: application/json\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Script:
    """Answers the n-th request with the n-th list of pieces; `None` among them closes the connection."""

    def __init__(self, *answers: list[bytes | None]) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.num_connections = 0
        self.has_lost_one = asyncio.Event()
        self.port = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while self.answers:
                self.requests.append(await _request(reader))
                if not await _say(writer, self.answers.pop(0)):
                    return
            await reader.read()
        self.has_lost_one.set()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or 0)
    return head + await reader.readexactly(length)


async def _say(writer: asyncio.StreamWriter, pieces: list[bytes | None]) -> bool:
    for piece in pieces:
        if piece is None:
            return False
        writer.write(piece)
        await writer.drain()
    return True


@contextlib.asynccontextmanager
async def talking(*answers: list[bytes | None], timeout_s: float = 20.0) -> AsyncIterator[tuple[Script, HttpClient]]:
    script = Script(*answers)
    server = await asyncio.start_server(script.talk, "127.0.0.1", 0)
    script.port = server.sockets[0].getsockname()[1]
    async with server, HttpClient(f"http://127.0.0.1:{script.port}/v1/", "sesame", timeout_s) as client:
        yield script, client


class Sink:
    """Collects what is streamed; `raises` is what it makes of it."""

    def __init__(self, raises: Exception | None = None) -> None:
        self.data = b""
        self.times_s: list[float] = []
        self._raises = raises

    def __call__(self, now_s: float, data: bytes) -> None:
        self.data += data
        self.times_s.append(now_s)
        if self._raises is not None:
            raise self._raises


async def test_a_request_is_what_http_asks_for() -> None:
    async with talking([whole(b"{}")]) as (script, client):
        response = await client.post("/v1/completions", b'{"a": 1}')
    assert (response.status, response.content_type, response.body) == (200, "application/json", b"{}")
    assert script.requests == [
        b"POST /v1/completions HTTP/1.1\r\n"
        b"Host: 127.0.0.1:%d\r\n"
        b"Accept: application/json, text/event-stream\r\n"
        b"Authorization: Bearer sesame\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: 8\r\n\r\n"
        b'{"a": 1}' % script.port
    ]


async def test_a_stream_is_handed_on_as_it_comes_with_the_time_of_the_clock() -> None:
    ticks = itertools.count()
    sink = Sink()
    script = Script([STREAM + chunk(b"ab") + chunk(b"c"), chunk(b"d") + END])
    server = await asyncio.start_server(script.talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, HttpClient(f"http://127.0.0.1:{port}", None, 20.0, lambda: float(next(ticks))) as client:
        response = await client.post("/x", b"", sink)
    assert (sink.data, response.body) == (b"abcd", b"")
    assert sink.times_s[0] == sink.times_s[1] == 0.0  # they came together
    assert sink.times_s == sorted(sink.times_s)


async def test_an_error_is_not_handed_to_the_sink() -> None:
    sink = Sink()
    error = whole(b"no", "429 Too Many Requests").replace(b"application/json", b"text/event-stream")
    async with talking([error]) as (_, client):
        response = await client.post("/x", b"", sink)
    assert (response.status, response.body, sink.data) == (429, b"no", b"")


async def test_connections_are_kept_and_used_again() -> None:
    async with talking([whole(b"1")], [STREAM, chunk(b"2"), END], [whole(b"3")]) as (script, client):
        for _ in range(3):
            await client.post("/x", b"", Sink())
    assert script.num_connections == 1


async def test_two_requests_at_a_time_have_two_connections() -> None:
    async with talking([whole(b"1")], [whole(b"2")]) as (script, client):
        await asyncio.gather(client.get("/x"), client.get("/y"))
    assert script.num_connections == 2


async def test_a_connection_that_the_server_ends_is_not_used_again() -> None:
    async with talking([whole(b"1", more="Connection: close\r\n")], [whole(b"2")]) as (script, client):
        assert [(await client.get("/x")).body for _ in range(2)] == [b"1", b"2"]
    assert script.num_connections == 2


async def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async with talking([whole(b"1")], [None], [whole(b"2")]) as (script, client):
        assert [(await client.get("/x")).body for _ in range(2)] == [b"1", b"2"]
    assert script.num_connections == 2
    assert len(script.requests) == 3


async def test_a_body_may_end_with_its_connection() -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    sink = Sink()
    async with talking([head, b"data: a\n\n", None]) as (_, client):
        await client.post("/x", b"", sink)
    assert sink.data == b"data: a\n\n"


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([None], "the server closed the connection without an answer"),
        ([STREAM, chunk(b"a"), None], "the connection was closed before the end of the answer"),
        ([b"HTTP/1.1 200", None], "the connection was closed before the end of the answer"),
        ([b"SSH-2.0-OpenSSH\r\n"], "the answer is not HTTP"),
    ],
)
async def test_an_answer_that_is_cut_or_none_fails(pieces: list[bytes | None], reason: str) -> None:
    async with talking(pieces, [whole(b"next")]) as (_, client):
        with pytest.raises(RequestFailedError, match=reason) as raised:
            await client.post("/x", b"", Sink())
        assert raised.value.reason == reason
        assert (await client.get("/x")).body == b"next"


async def test_what_the_sink_refuses_fails_the_request_and_ends_its_connection() -> None:
    async with talking([STREAM, chunk(b"a"), chunk(b"b"), END], [whole(b"next")]) as (script, client):
        with pytest.raises(RequestFailedError, match="no event"):
            await client.post("/x", b"", Sink(RequestFailedError("no event")))
        assert (await client.get("/x")).body == b"next"
    assert script.num_connections == 2


async def test_a_server_that_does_not_answer_in_time_fails_and_is_left() -> None:
    async with talking([STREAM], timeout_s=0.05) as (script, client):
        with pytest.raises(RequestFailedError, match=r"it took longer than 0\.05 s"):
            await client.post("/x", b"", Sink())
        async with asyncio.timeout(10):
            await script.has_lost_one.wait()


async def test_no_server_is_named() -> None:
    async with talking() as (script, _):
        pass
    async with HttpClient(f"http://127.0.0.1:{script.port}", None, 20.0) as client:
        with pytest.raises(RequestFailedError, match=f"cannot connect to 127.0.0.1 port {script.port}"):
            await client.get("/x")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="is no URL of a server"):
        HttpClient(url, None, 1.0)
