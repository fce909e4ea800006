"""TLS: a pair that is replaced while connections are open, and one that cannot be used."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from orcinus.config.settings import SettingsError, load_settings
from orcinus.server.http import connection
from orcinus.server.process import server as server_module
from orcinus.server.process import tls
from orcinus.server.process.listening import ListenError
from orcinus.server.process.server import DrainingServer
from orcinus.server.process.tls import Certificate
from tests.certificates import Pair, make_certificate
from tests.unit.engine.fakes import FakeExecutor, alphabet
from tests.unit.server.serving import Gate, Serving, listening, serving, until


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_certificate(tmp_path)


@contextlib.asynccontextmanager
async def client_of(port: int, pair: Pair) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"https://localhost:{port}", verify=pair.context, timeout=20) as client:
        yield client


async def trusts(port: int, pair: Pair) -> bool:
    """Whether a new connection, made without a name of a host, is given this pair's certificate."""
    context = pair.context
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except ssl.SSLCertVerificationError:
        return False
    writer.transport.abort()
    return True


async def test_requests_are_answered_over_tls_whole_and_streamed(served: Serving, pair: Pair) -> None:
    async with listening(served, **pair.settings) as (_, port), client_of(port, pair) as client:
        whole = await client.post("/v1/completions", json={"prompt": "ab"})
        assert whole.json()["choices"][0]["text"] == "Hello"
        streamed = await client.post("/v1/completions", json={"prompt": "ab", "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert (await client.get("/nowhere")).status_code == 404


async def test_what_a_connection_answers_itself_is_read_over_tls(served: Serving, pair: Pair) -> None:
    async with listening(served, **pair.settings) as (_, port):
        reader, writer = await asyncio.open_connection("localhost", port, ssl=pair.context)
        writer.write(b"GET / HTTP/1.1\r\nno header\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.transport.abort()


async def test_new_connections_get_a_new_certificate_and_a_stream_goes_on(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.01)
    old = Pair(tmp_path / "old.crt", tmp_path / "old.key")
    old.certfile.write_bytes(pair.certfile.read_bytes())
    new, gate = make_certificate(tmp_path, "new"), Gate()
    async with (
        serving(tmp_path, FakeExecutor(alphabet, before_step=gate)) as served,
        listening(served, **pair.settings) as (_, port),
        client_of(port, old) as client,
    ):
        body = {"prompt": "a", "max_tokens": 6, "stream": True}
        gate.let(2)
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith("data: ")
            pair.replace_by(new)
            try:
                await until_trusted(port, new)
                assert not await trusts(port, old)
            finally:
                gate.open()
            assert [line async for line in lines][-2:] == ["data: [DONE]", ""]


async def until_trusted(port: int, pair: Pair) -> None:
    async with asyncio.timeout(20):
        while not await trusts(port, pair):  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0.01)


async def test_a_broken_pair_is_kept_out_and_said_once(
    served: Serving, tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.01)
    former = make_certificate(tmp_path, "former")
    pair.replace_by(former)
    async with listening(served, **pair.settings) as (_, port):
        with caplog.at_level(logging.INFO, tls.__name__):
            pair.keyfile.write_bytes(make_certificate(tmp_path, "other").keyfile.read_bytes())
            await until(lambda: caplog.records)
            await asyncio.sleep(0.05)  # several more looks, none of which says it again
            [record] = caplog.records
            assert "do not belong together" in record.getMessage()
            assert await trusts(port, former)
            pair.keyfile.unlink()
            await until(lambda: len(caplog.records) == 2)
            assert await trusts(port, former)
            pair.replace_by(former)
            await until(lambda: "was read again" in caplog.text)


async def test_sighup_has_the_certificate_read_again(
    served: Serving, tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 1e6)
    async with listening(served, **pair.settings) as (server, port):
        assert await trusts(port, pair)  # so that it has started
        new = make_certificate(tmp_path, "new")
        pair.replace_by(new)
        server.handle_hangup(1, None)
        await until_trusted(port, new)


async def test_a_client_that_does_not_shake_hands_is_closed(
    served: Serving, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEAD_TIMEOUT_S", 0.05)
    assert connection.HEAD_TIMEOUT_S == 10.0
    async with listening(served, **pair.settings) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


async def test_plain_http_on_a_port_with_tls_gets_no_answer(served: Serving, pair: Pair) -> None:
    async with listening(served, **pair.settings) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert not (await reader.read()).startswith(b"HTTP")
        writer.close()


def test_pairs_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path, pair: Pair) -> None:
    other = make_certificate(tmp_path, "other")
    with pytest.raises(SettingsError, match=r"server\.crt cannot be used .*other\.key: they do not belong together"):
        load_settings(ssl_certfile=pair.certfile, ssl_keyfile=other.keyfile)
    with pytest.raises(SettingsError, match=r"need ssl_certfile"):
        load_settings(ssl_keyfile=pair.keyfile)
    with pytest.raises(SettingsError, match=r"there is no file .*nowhere\.crt"):
        load_settings(ssl_certfile=tmp_path / "nowhere.crt")
    (tmp_path / "text").write_text("no PEM")
    with pytest.raises(SettingsError, match=r"text cannot be used"):
        load_settings(ssl_certfile=tmp_path / "text")
    with pytest.raises(SettingsError, match=r"server\.crt holds no private key; --ssl-keyfile names the file"):
        load_settings(ssl_certfile=pair.certfile)
    with pytest.raises(SettingsError, match=r"other\.crt holds no private key$"):
        load_settings(ssl_certfile=pair.certfile, ssl_keyfile=other.certfile)


def test_a_key_with_a_password_needs_it_and_it_is_never_shown(tmp_path: Path) -> None:
    pair = make_certificate(tmp_path, "locked", password="open sesame")
    for password in ("wrong one", None):
        with pytest.raises(SettingsError, match=r"password") as refused:
            load_settings(**pair.settings, ssl_keyfile_password=password)
        assert "wrong one" not in str(refused.value)
    settings = load_settings(**pair.settings, ssl_keyfile_password="open sesame")
    assert "open sesame" not in repr(settings)


def test_a_pair_that_breaks_while_the_server_starts_is_said_in_one_line(pair: Pair) -> None:
    settings = load_settings(**pair.settings)
    pair.keyfile.write_text("no PEM")
    with pytest.raises(ListenError, match=r"server\.crt cannot be used"):
        Certificate(settings)


def test_without_a_certificate_there_is_no_tls(served: Serving) -> None:
    assert DrainingServer(served.app, served.engine, load_settings())._certificate is None


def test_a_pair_may_be_in_one_file(tmp_path: Path, pair: Pair) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(pair.certfile.read_bytes() + pair.keyfile.read_bytes())
    assert load_settings(ssl_certfile=both).ssl_keyfile is None
