"""Clients that close their sending side after a request: they are answered, and those that have left are not."""

import json
from pathlib import Path

import pytest

from orcinus.server.http import half_closed
from tests.unit.engine.fakes import FakeExecutor, alphabet
from tests.unit.server.http.test_connections import HEAD, POST, connect, connections_of, statuses_of
from tests.unit.server.serving import Gate, listening, serving, until

PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"


def post(version: str = "1.1", **body: object) -> bytes:
    content = json.dumps({"prompt": "a", "max_tokens": 5, **body}).encode()
    head = POST.replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    return head + b"content-length: %d\r\n\r\n%b" % (len(content), content)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_that_closes_its_side_behind_its_request_is_answered(
    tmp_path: Path, version: str, is_streamed: bool
) -> None:
    gate = Gate()
    async with (
        serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served,
        listening(served) as (server, port),
        connect(port) as client,
    ):
        client.writer.write(post(version, stream=is_streamed))
        client.writer.write_eof()
        await until(lambda: served.engine.num_queued + served.engine.num_running == 1)
        await until(lambda: connections_of(server)[0]._half_closed is not None)
        gate.open()
        answer = (await client.reader.read()).removeprefix(PROBE)
        assert statuses_of(answer) == [200]
        assert b"\r\nconnection: close\r\n" in answer
        assert (b"data: [DONE]\n\n" in answer) == is_streamed
        await until(lambda: not server.server_state.connections)
        assert await served.metric("orcinus_requests_total", outcome="abort") == 0


@pytest.mark.parametrize("asked", [HEAD + b"\r\n", b"GET /live HTTP/1.0\r\n\r\n", (HEAD + b"\r\n") * 5])
async def test_requests_and_the_end_may_come_together(tmp_path: Path, asked: bytes) -> None:
    async with serving(tmp_path) as served, listening(served) as (server, port), connect(port) as client:
        client.writer.write(asked)
        client.writer.write_eof()
        answers = (await client.reader.read()).removeprefix(PROBE)
        assert statuses_of(answers) == [200] * asked.count(b"/live")
        await until(lambda: not server.server_state.connections)


@pytest.mark.parametrize("rest", [HEAD, POST + b"content-length: 5\r\n\r\n12", b"no HTTP\r\n\r\n"])
async def test_what_was_whole_is_answered_where_more_had_begun(tmp_path: Path, rest: bytes) -> None:
    async with serving(tmp_path) as served, listening(served) as (server, port), connect(port) as client:
        client.writer.write((HEAD + b"\r\n") * 2 + rest)
        client.writer.write_eof()
        answers = (await client.reader.read()).removeprefix(PROBE)
        assert statuses_of(answers) == [200, 200] + [400] * rest.startswith(b"no")
        await until(lambda: not server.server_state.connections)


@pytest.mark.parametrize("sent", [b"", HEAD, POST + b"content-length: 5\r\n\r\n12"])
async def test_a_client_that_is_owed_nothing_is_let_go(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path) as served, listening(served) as (server, port), connect(port) as client:
        client.writer.write(sent)
        client.writer.write_eof()
        assert await client.reader.read() == b""
        await until(lambda: not server.server_state.connections)


async def test_one_that_waits_for_long_is_sent_what_it_passes_over_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_closed, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(half_closed, "PROBE_EVERY_S", 0.02)
    gate = Gate()
    async with (
        serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served,
        listening(served) as (_, port),
        connect(port) as client,
    ):
        client.writer.write(post())
        client.writer.write_eof()
        assert await client.reader.readexactly(3 * len(PROBE)) == 3 * PROBE
        gate.open()
        rest = await client.reader.read()
        assert [status for status in statuses_of(rest) if status != 100] == [200]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_one_that_leaves_later_frees_its_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    monkeypatch.setattr(half_closed, "PROBE_EVERY_S", 0.02)
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served, listening(served) as (_, port):
        async with connect(port) as client:
            client.writer.write(post(max_tokens=200, stream=is_streamed))
            client.writer.write_eof()
            assert await client.reader.readexactly(len(PROBE)) == PROBE
            client.leave()
            await until(lambda: served.engine.num_queued + served.engine.num_running == 0)
            gate.open()
        assert await served.metric("orcinus_requests_total", outcome="abort") == 1


async def test_one_of_http_1_0_that_may_have_left_is_waited_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_closed, "OLD_CLIENT_S", 0.2)
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served, listening(served) as (_, port):
        async with connect(port) as client:
            client.writer.write(post("1.0", max_tokens=200))
            client.writer.write_eof()
            assert await client.reader.read() == b""
            await until(lambda: served.engine.num_queued + served.engine.num_running == 0)
            gate.open()
        assert await served.metric("orcinus_requests_total", outcome="abort") == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("has_tokens", [False, True])
async def test_a_stream_that_has_begun_asks_whether_its_client_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, has_tokens: bool
) -> None:
    """With the next token, or without one."""
    monkeypatch.setattr(half_closed, "PROBE_EVERY_S", 3600 if has_tokens else 0.02)
    gate = Gate()
    async with serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served, listening(served) as (_, port):
        async with connect(port) as client:
            client.writer.write(post(version, max_tokens=200, stream=True))
            gate.let(2)
            await client.reader.readuntil(b"data: ")
            client.writer.write_eof()
            await client.reader.readuntil(b": keep-alive\n\n")
            client.leave()
            if has_tokens:
                gate.let(3)
            await until(lambda: served.engine.num_queued + served.engine.num_running == 0)
            gate.open()
        assert await served.metric("orcinus_requests_total", outcome="abort") == 1
