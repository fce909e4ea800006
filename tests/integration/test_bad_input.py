"""A real server process and what nobody should send it: every time a clean refusal, and the work of others goes on."""

import contextlib
import gzip
import json
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from orcinus.engine.text.template_sandbox import MAX_RENDER_S
from orcinus.server.http.connection import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_IN_LINE,
    MAX_LINGER_BYTES,
    MAX_TARGET_BYTES,
)
from tests.pause_probe import PauseProbe
from tests.server_process import LIGHT, PATIENCE_S, ServerProcess, StartServer, until
from tests.unit.server.http.test_bodies import BROKEN

JSON = {"content-type": "application/json"}
HEAD = b"GET /live HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
USER = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 1},
    "/v1/chat/completions": {"messages": USER, "max_tokens": 1},
    "/v1/responses": {"input": "hi", "max_output_tokens": 1},
    "/v1/messages": {"messages": USER, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": USER},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["ho"]},
    "/v1/score": {"text_1": "hi", "text_2": "ho"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [5]},
}


@contextlib.contextmanager
def connected(server: ServerProcess) -> Iterator[socket.socket]:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        yield connection


def say(connection: socket.socket, raw: bytes) -> None:
    """As much of it as the server takes."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(raw)


def hear(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            heard += part
    return heard


def talk(server: ServerProcess, raw: bytes) -> bytes:
    with connected(server) as connection:
        say(connection, raw)
        return hear(connection)


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1."), answer[:200]
    return int(answer.split(None, 2)[1])


def ask_live(connection: socket.socket) -> int:
    say(connection, HEAD + b"\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(1000)
    return status_of(answer)


def message_of(response: httpx.Response, status: int) -> str:
    """The message of an error, whose status and size are checked."""
    assert response.status_code == status, response.text[:500]
    assert len(response.content) < 32 * 1024
    message: str = response.json()["error"]["message"]
    return message


def post(server: ServerProcess, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    return server.http.post(path, content=json.dumps(body), headers=JSON, timeout=120)


def is_well(server: ServerProcess) -> bool:
    return post(server, prompt="hi", max_tokens=1).status_code == 200


# --- on the socket --------------------------------------------------------------------------------------

RAW = {
    "8 MB in one header": (HEAD + b"x-long: " + b"a" * 2**23 + b"\r\n\r\n", 431, b"%d bytes" % MAX_HEAD_BYTES),
    "8 MB of headers": (HEAD + b"x: yyyyyyyyyy\r\n" * 2**19 + b"\r\n", 431, b"%d headers" % MAX_HEADERS),
    "8 MB in the URL": (b"GET /" + b"a" * 2**23 + b" HTTP/1.1\r\n\r\n", 414, b"%d bytes" % MAX_TARGET_BYTES),
    "8 MB of empty lines": (b"\r\n" * 2**22, 431, b"%d bytes" % MAX_HEAD_BYTES),
    "8 MB in a trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nx: " + b"a" * 2**23, 431, b"%d bytes" % MAX_HEAD_BYTES),
    "8 MB beside a chunk": (CHUNKED + b"2;" + b"a" * 2**23, 413, b"%d bytes" % MAX_HEAD_BYTES),
    "a million chunks": (CHUNKED + b"1\r\n \r\n" * 10**6, 413, b"%d bytes" % MAX_HEAD_BYTES),
    "a chunk of 2**63 bytes": (CHUNKED + b"7fffffffffffffff\r\n" + b" " * 2**25, 413, b"at most"),
    "an endless chunk size": (CHUNKED + b"f" * 100_000, 400, b"not valid HTTP"),
    "a body of 10 GB, announced": (POST + b"content-length: 10000000000\r\n\r\n{", 413, b"at most"),
    "a length of many digits": (POST + b"content-length: " + b"9" * 5000 + b"\r\n\r\n", 400, b"not valid HTTP"),
    "a negative length": (POST + b"content-length: -1\r\n\r\n", 400, b"not valid HTTP"),
    "two lengths": (POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400, b"not valid HTTP"),
    "a length and chunks": (POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", 400, b"not valid"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), 400, b"not valid HTTP"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, b"not valid HTTP"),
    "noise": (bytes((i * i * 7919) % 251 for i in range(4096)), 400, b"not valid HTTP"),
    "no HTTP": (b"help\r\n\r\n", 400, b"not valid HTTP"),
    "a NUL in the path": (b"GET /\x00 HTTP/1.1\r\n\r\n", 400, b"not valid HTTP"),
    "a path that is no ASCII": (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", 400, b"not valid HTTP"),
    "a host for a path": (b"CONNECT example.com:443 HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, b"not valid HTTP"),
    "a newline in a header": (HEAD + b"x: a\n b\r\n y\r\n\r\n", 400, b"not valid HTTP"),
    "a space before the colon": (HEAD + b"x-y : z\r\n\r\n", 400, b"not valid HTTP"),
}


@pytest.mark.parametrize(("raw", "status", "words"), RAW.values(), ids=RAW.keys())
def test_what_is_no_request_or_too_much_of_one_is_refused_and_closed(
    server: ServerProcess, raw: bytes, status: int, words: bytes
) -> None:
    answer = talk(server, raw)
    assert status_of(answer) == status
    assert b"connection: close" in answer
    assert words in answer
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}


def test_heads_that_never_come_to_their_end_are_given_up(start_light_server: StartServer) -> None:
    """A hundred dribble, a hundred say nothing at all."""
    constants = {"orcinus.server.http.connection.HEAD_TIMEOUT_S": 0.5}
    server = start_light_server("--connection-keep-alive-s", "0.5", constants=constants)
    deadline = time.monotonic() + 60
    with contextlib.ExitStack() as stack:
        silent = {stack.enter_context(connected(server)) for _ in range(100)}
        dribbling = {stack.enter_context(connected(server)) for _ in range(100)}
        waiting = silent | dribbling
        while waiting:
            assert time.monotonic() < deadline, f"{len(waiting)} connections are still open"
            for connection in dribbling & waiting:
                say(connection, b"G")
            for connection in select.select([*waiting], [], [], 0.2)[0]:
                assert hear(connection) == b"" or connection in dribbling
                waiting.discard(connection)
        assert is_well(server)


def test_connections_beyond_the_bound_are_refused_and_those_before_work_on(start_light_server: StartServer) -> None:
    server = start_light_server("--max-connections", "8")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connected(server))
        assert ask_live(first) == 200
        others = [stack.enter_context(connected(server)) for _ in range(20)]
        refused = [connection for connection in others[7:] if status_of(hear(connection)) == 503]
        assert len(refused) == 13
        assert ask_live(first) == 200
    assert is_well(server)


def test_requests_without_end_sent_at_once_are_cut_off(server: ServerProcess) -> None:
    resident = psutil.Process(server.pid).memory_info().rss
    answer = talk(server, (HEAD + b"\r\n") * 200_000)
    assert answer.count(b"HTTP/1.1") <= MAX_IN_LINE + 200  # those that were answered while they came
    assert psutil.Process(server.pid).memory_info().rss - resident < 2**26
    assert is_well(server)


def test_older_and_odder_forms_of_requests_are_understood(server: ServerProcess) -> None:
    body = b'{"prompt": "hi", "max_tokens": 1}'
    ten = b"POST /v1/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    assert status_of(talk(server, ten % len(body) + body)) == 200
    host = urlsplit(server.url).netloc.encode()
    absolute = b"GET http://%b/live HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % (host, host)
    assert status_of(talk(server, absolute)) == 200
    upgrade = HEAD + b"connection: upgrade, close\r\nupgrade: h2c\r\n\r\n"
    assert status_of(talk(server, upgrade)) == 200


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_that_offers_another_protocol_keeps_its_body(server: ServerProcess, is_chunked: bool) -> None:
    """As Java's client does with every request. In one piece and byte by byte, and with another one behind it."""
    body = b'{"prompt": "hi", "max_tokens": 1}'
    offer = POST + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
    chunks = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    whole = b"content-length: %d\r\n\r\n%b" % (len(body), body)
    request = offer + (chunks if is_chunked else whole)
    last = HEAD + b"connection: upgrade, close\r\nupgrade: h2c\r\n\r\n"
    assert talk(server, request + request + last).count(b"HTTP/1.1 200 ") == 3
    with connected(server) as connection:
        for at in range(len(request)):
            say(connection, request[at : at + 1])
        say(connection, last)
        assert hear(connection).count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, identity"])
def test_a_compressed_body_is_refused_unread(server: ServerProcess, encoding: str) -> None:
    bomb = gzip.compress(b" " * 2**24)
    headers = {**JSON, "content-encoding": encoding}
    response = server.http.post("/v1/completions", content=bomb, headers=headers)
    assert "must not be compressed" in message_of(response, 415)


@pytest.mark.parametrize(
    "target",
    [
        "/live/../v1/models",
        "/v1/models/../../live",
        "/live/%2e%2e/v1/models",
        "//live",
        "//live/v1/models",
        "/v1//models",
        "/./v1/models",
        "/v1/models/",
        "/v1/models?path=/live",
        "/v1/models#/live",
        "/v1/models%3F/live",
        "/v1%2Fmodels",
        "/v1/models;/live",
        "/V1/models",
        "http://live/v1/models",
        "http://x/live/../v1/models",
        "/%2e/v1/models",
        "/v1/models%00/live",
        "/metrics/../tokenize",
    ],
)
def test_no_way_of_writing_a_path_gets_past_the_key(guarded_server: ServerProcess, target: str) -> None:
    request = f"GET {target} HTTP/1.1\r\nhost: live\r\nx-original-url: /live\r\nconnection: close\r\n\r\n"
    assert status_of(talk(guarded_server, request.encode())) in (400, 401)


def test_other_spellings_of_an_open_path_are_that_path_or_closed(guarded_server: ServerProcess) -> None:
    for target, statuses in {"/live": (200,), "/%6Cive": (200,), "http://x/live": (200,), "/live/": (401,)}.items():
        request = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        assert status_of(talk(guarded_server, request.encode())) in statuses


@pytest.fixture(scope="module")
def guarded_server() -> Iterator[ServerProcess]:
    """It lets a client send on for 0.3 s after an answer, where 2 s are usual."""
    running = start_guarded(linger_s=0.3)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def patient_server() -> Iterator[ServerProcess]:
    """It lets a client send on for longer than any machine takes."""
    running = start_guarded(linger_s=PATIENCE_S)
    try:
        yield running
    finally:
        running.close()


def start_guarded(linger_s: float) -> ServerProcess:
    limits = ("--api-key", "secret", "--allowed-host", "*", "--max-num-seqs", "1", "--max-queue-len", "1")
    return ServerProcess(*limits, module=LIGHT, constants={"orcinus.server.http.connection.LINGER_S": linger_s})


def test_a_key_is_asked_for_before_a_body_is_read(guarded_server: ServerProcess) -> None:
    answer = talk(guarded_server, POST + b"content-length: 1000000\r\nconnection: close\r\n\r\n")
    assert status_of(answer) == 401


KEY = b"authorization: Bearer secret\r\n"
ANSWERED_EARLY = {
    "no key": (CHUNKED, 401),
    "no room": (POST + KEY + b"transfer-encoding: chunked\r\n\r\n", 429),
    "too large": (POST + KEY + b"content-length: 10000000000\r\n\r\n", 413),
    "no JSON": (POST.replace(b"json", b"xml") + KEY + b"transfer-encoding: chunked\r\n\r\n", 415),
    "no HTTP": (HEAD + b"x\r\n\r\n", 400),
}
PART = b"10000\r\n" + b" " * 2**16 + b"\r\n"


@contextlib.contextmanager
def answering_with(server: ServerProcess, status: int) -> Iterator[None]:
    """The queue is full where there is to be no room."""
    if status != 429:
        yield
        return
    body = json.dumps({"prompt": "x", "n": 2, "max_tokens": 2000, "ignore_eos": True}).encode()
    with connected(server) as connection:
        say(connection, POST + KEY + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: server.metric("orcinus_queue_depth") == 1, "the queue did not fill")
        yield
    until(lambda: server.metric("orcinus_queue_depth") + server.metric("orcinus_slots_in_use") == 0, "it stayed full")


@pytest.mark.parametrize(("head", "status"), ANSWERED_EARLY.values(), ids=ANSWERED_EARLY.keys())
def test_who_is_answered_before_the_body_ends_can_send_on_for_a_while_and_read_why(
    patient_server: ServerProcess, head: bytes, status: int
) -> None:
    with answering_with(patient_server, status), connected(patient_server) as connection:
        connection.sendall(head + PART * 128)
        answer = hear(connection)
    assert status_of(answer) == status
    assert b"connection: close" in answer
    assert answer.endswith(b"}}")


@pytest.mark.parametrize(("head", "status"), ANSWERED_EARLY.values(), ids=ANSWERED_EARLY.keys())
@pytest.mark.parametrize("part", [PART, b"1\r\n \r\n"], ids=["endless", "slow"])
def test_a_body_that_is_refused_is_not_read_on_for_ever(
    guarded_server: ServerProcess, head: bytes, status: int, part: bytes
) -> None:
    deadline = time.monotonic() + 60
    with answering_with(guarded_server, status), connected(guarded_server) as connection:
        say(connection, head + part)
        assert status_of(hear(connection)) == status
        num_sent = 0
        with pytest.raises(ConnectionError):  # noqa: PT012  (which of them is cut off is up to the system)
            while time.monotonic() < deadline:
                num_sent += connection.send(part)
                if len(part) < 100:
                    time.sleep(0.02)
    assert num_sent < MAX_LINGER_BYTES + 2**25  # which the system holds


# --- bodies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
def test_every_broken_body_is_a_400_everywhere(server: ServerProcess, path: str) -> None:
    with httpx.Client(base_url=server.url, headers=JSON, timeout=60) as client:
        for name, content in BROKEN.items():
            assert message_of(client.post(path, content=content), 400), name


WRONG_VALUES: list[Any] = [
    "\x00",
    "",
    -1,
    2**63,
    10**4000,
    1e308,
    True,
    [],
    {},
    [[]],
    [{}],
    {"": {}},
    [10**30],
    [None] * 3000,
    {"type": []},
    [{"type": {}}],
    [{"role": []}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"arguments": "[" * 10_000}}]}],
    [{"type": "function", "function": {"name": "f", "parameters": "x"}}],
    {"json": '{"const": "\\ud800"}'},
    {"json": '{"const": 1e999}'},
    {"json": "[" * 100_000},
    {"regex": "\x00("},
]


def fields_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    """The schemas of the fields of a body."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    return fields


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
def test_no_value_of_any_parameter_is_a_500(server: ServerProcess, path: str) -> None:
    """Any value is fine, or the client's fault. Every sixth is tried of a field that an earlier path has, too."""
    document = server.get("/openapi.json").json()
    earlier = [fields_of(document, other) for other in list(BODIES)[: list(BODIES).index(path)]]
    with httpx.Client(base_url=server.url, headers=JSON, timeout=60) as client:
        for number, (field, schema) in enumerate(fields_of(document, path).items()):
            is_known = any(fields.get(field) == schema for fields in earlier)
            for value in WRONG_VALUES[number % 6 :: 6] if is_known else WRONG_VALUES:
                content = json.dumps({**BODIES[path], field: value})
                response = client.post(path, content=content)
                assert response.status_code in (200, 400, 404), (field, value, response.text[:500])
                assert len(response.content) < 32 * 1024 or response.status_code == 200
    assert is_well(server)


TOO_MUCH: dict[str, tuple[str, dict[str, Any], str]] = {
    "n": ("/v1/completions", {"n": 10**8}, "128"),
    "n in a chat": ("/v1/chat/completions", {"n": 10**8}, "128"),
    "best_of": ("/v1/completions", {"best_of": 10**8}, "128"),
    "prompts": ("/v1/completions", {"prompt": ["x"] * 10_000}, "at most 256 entries, got 10000"),
    "prompts times n": ("/v1/completions", {"prompt": ["x"] * 200, "n": 100}, "at most 1024, got 200 x 100 = 20000"),
    "inputs": ("/v1/embeddings", {"input": ["x"] * 10_000}, "at most 2048 entries, got 10000"),
    "documents": ("/v1/rerank", {"documents": ["x"] * 10_000}, "at most 2048 entries, got 10000"),
    "texts": ("/v1/score", {"text_2": ["x"] * 10_000}, "at most 2048 entries, got 10000"),
    "stops": ("/v1/completions", {"stop": ["x"] * 10_000}, "at most 4 entries, got 10000"),
    "stop sequences": ("/v1/messages", {"stop_sequences": ["x"] * 10_000}, "at most 4 entries, got 10000"),
    "biases": ("/v1/completions", {"logit_bias": {str(i): 1 for i in range(100_000)}}, "got 100000"),
    "a bias outside the vocabulary": ("/v1/completions", {"logit_bias": {"123456789": 1}}, "123456789"),
    "a huge bias": ("/v1/completions", {"logit_bias": {"5": 1e300}}, "100"),
    "an id outside the vocabulary": (
        "/v1/completions",
        {"prompt": [10**9]},
        "1000000000, outside the vocabulary (0 to ",
    ),
    "a negative id": ("/v1/completions", {"prompt": [-1]}, "-1, outside the vocabulary (0 to "),
    "an id to read": ("/detokenize", {"tokens": [10**9]}, "1000000000, outside the vocabulary (0 to "),
    "a stop id": ("/v1/completions", {"stop_token_ids": [10**9]}, "1000000000"),
    "an allowed id": ("/v1/completions", {"allowed_token_ids": [10**9]}, "1000000000"),
    "no ids allowed": ("/v1/completions", {"allowed_token_ids": []}, "at least 1"),
    "a banned word": ("/v1/completions", {"bad_words": ["x" * 10**6]}, "1 to 1024 characters each, got 1000000"),
    "a banned word of many tokens": ("/v1/completions", {"bad_words": ["q1" * 500]}, "1 to 64 tokens each, got 1000"),
    "a schema as text": ("/v1/completions", {"structured_outputs": {"json": "[" * 10**6}}, "at most 262144 characters"),
    "NaN in a schema": ("/v1/completions", {"structured_outputs": {"json": '{"const": NaN}'}}, "is not valid JSON"),
    "no prompts": ("/v1/completions", {"prompt": []}, "got an empty list"),
    "an empty prompt": ("/v1/completions", {"prompt": ""}, "the prompt is empty: it must have at least one token"),
    "a prompt without ids": ("/v1/completions", {"prompt": [[]]}, "it must have at least one token"),
    "no messages": ("/v1/chat/completions", {"messages": []}, "at least one message"),
    "messages": ("/v1/chat/completions", {"messages": USER * 10_000}, "at most 4096 entries, got 10000"),
    "logprobs": ("/v1/completions", {"logprobs": 10**6}, "20"),
    "max_tokens": ("/v1/completions", {"max_tokens": 10**6}, "maximum context length is"),
    "a seed": ("/v1/completions", {"seed": 2**70}, str(2**64 - 1)),
    "a time": ("/v1/completions", {"timeout": 1e9}, "86400"),
}


@pytest.mark.parametrize(("path", "body", "words"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_too_much_of_something_is_refused_with_the_limit_and_the_value(
    server: ServerProcess, path: str, body: dict[str, Any], words: str
) -> None:
    assert words in message_of(post(server, path, **{**BODIES[path], **body}), 400)


# --- what could make the server ask others ----------------------------------------------------------------

PARTS: list[Callable[[str], dict[str, Any]]] = [
    lambda url: {"type": "image_url", "image_url": {"url": url}},
    lambda url: {"type": "input_image", "image_url": url},
    lambda url: {"type": "input_file", "file_url": url},
    lambda url: {"type": "image", "source": {"type": "url", "url": url}},
    lambda url: {"type": "document", "source": {"type": "url", "url": url}},
    lambda url: {"type": "audio_url", "audio_url": {"url": url}},
    lambda url: {"type": "video_url", "video_url": {"url": url}},
    lambda url: {"type": "file", "file": {"file_data": url}},
]


def test_nothing_a_client_sends_makes_the_server_ask_another(server: ServerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
        for part in PARTS:
            messages = [{"role": "user", "content": [part(url)]}]
            assert post(server, "/v1/chat/completions", messages=messages).status_code == 400
            assert post(server, "/v1/messages", messages=messages, max_tokens=1).status_code == 400
            assert post(server, "/v1/responses", input=messages).status_code == 400
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}
        assert post(server, "/v1/chat/completions", messages=USER, response_format=schema).status_code == 400
        trap.settimeout(0)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_a_client_cannot_bring_a_template_or_replace_what_the_server_gives_it(server: ServerProcess) -> None:
    response = post(server, "/v1/chat/completions", messages=USER, chat_template="{{ 1 }}")
    assert "chat_template is not supported" in message_of(response, 400)
    for name in (
        "messages",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "self",
        "namespace",
    ):
        response = post(server, "/v1/chat/completions", messages=USER, chat_template_kwargs={name: "x"})
        assert name in message_of(response, 400)


# --- what takes long --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_template_without_end_fails_its_request_and_holds_up_nobody(start_light_server: StartServer) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    source = "{% if messages[0].content == 'endless' %}" + endless + "{% endif %}{{ messages[0].content }}"
    server = start_light_server("--chat-template", source)
    answers: list[httpx.Response] = []
    asked = {"messages": [{"role": "user", "content": "endless"}]}
    worker = threading.Thread(target=lambda: answers.append(post(server, "/v1/chat/completions", **asked)))
    with PauseProbe(server.url) as probe:
        worker.start()
        while worker.is_alive():
            assert post(server, "/v1/chat/completions", messages=USER, max_tokens=1).status_code == 200
    assert "the chat template took longer than 5 s" in message_of(answers[0], 400)
    assert probe.worst_s < MAX_RENDER_S / 2, f"the server did not answer for {probe.worst_s:.3f} s"


@pytest.mark.slow
def test_a_template_that_is_hostile_costs_its_own_request_and_nobody_elses(start_light_server: StartServer) -> None:
    """It asks for 8 GB, or for minutes of a computation that nothing can interrupt, or is only unusual."""
    branches = {
        "memory": "{% set n = namespace(x=[]) %}{% for i in range(999) %}"
        "{% set n.x = n.x + ['a' * 9999999 ~ i] %}{% endfor %}",
        "time": "{% set n = namespace(x=(1, 2), y=(1, 2)) %}{% for i in range(40) %}"
        "{% set n.x = (n.x, n.x) %}{% set n.y = (n.y, n.y) %}{% endfor %}{{ {n.x: 1} | length }}",
        "odd": "{{ 'x' | center(9) }}",
    }
    source = "".join(
        "{% if messages[0].content == '" + name + "' %}" + does + "{% endif %}" for name, does in branches.items()
    )
    server = start_light_server("--chat-template", source + "{{ messages[0].content }}")
    answers: dict[str, httpx.Response] = {}

    def ask(content: str) -> None:
        messages = [{"role": "user", "content": content}]
        answers[content] = post(server, "/v1/chat/completions", messages=messages, max_tokens=1)

    workers = [threading.Thread(target=ask, args=(name,)) for name in branches]
    resident = psutil.Process(server.pid).memory_info().rss
    with PauseProbe(server.url) as probe:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            assert post(server, "/v1/chat/completions", messages=USER, max_tokens=1).status_code == 200
            assert psutil.Process(server.pid).memory_info().rss - resident < 2**29
    for name in ("memory", "time"):
        assert re.search("takes (too much memory|more than 5 s or 512 MiB)", message_of(answers[name], 400))
    assert answers["odd"].status_code == 200
    assert probe.worst_s < MAX_RENDER_S / 2, f"the server did not answer for {probe.worst_s:.3f} s"


@pytest.mark.slow
def test_a_client_that_reads_nothing_takes_little_memory_and_no_time_of_others(server: ServerProcess) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 1000, "ignore_eos": True, "stream": True, "logprobs": 20}).encode()
    process = psutil.Process(server.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(connected(server))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            say(connection, POST + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        resident = process.memory_info().rss
        deadline = time.monotonic() + 60
        while server.metric('orcinus_requests_total{outcome="length"}') < 4:
            assert is_well(server)
            assert time.monotonic() < deadline
        assert process.memory_info().rss - resident < 2**27


@pytest.mark.slow
def test_what_a_burst_of_large_requests_took_is_given_back(start_light_server: StartServer) -> None:
    server = start_light_server()
    body = {"prompt": "word " * 100_000}
    process = psutil.Process(server.pid)
    resident = process.memory_info().rss
    with ThreadPoolExecutor(12) as senders, httpx.Client(base_url=server.url, timeout=300) as client:
        for _ in range(3):
            answers = list(senders.map(lambda _: client.post("/tokenize", json=body), range(12)))
            assert {answer.status_code for answer in answers} == {200}
    assert process.memory_info().rss - resident < 400 * 2**20


def bomb_bodies() -> list[tuple[str, bytes]]:
    """Bodies of nearly 16 MB that cost as much as a body can."""
    size = 15 * 2**20
    user = b'{"messages": [{"role": "user", "content": "%b"}], "max_tokens": 1}'
    many = b", ".join([b'{"role": "user", "content": "x"}'] * 4000)
    return [
        ("/v1/completions", b'{"prompt": "' + b"word " * (size // 5) + b'"}'),
        ("/v1/completions", b'{"prompt": "' + b"a" * size + b'"}'),
        ("/v1/completions", b'{"prompt": [' + b"1234," * (size // 5) + b"1]}"),
        ("/v1/completions", b'{"prompt": [' + b"1," * (size // 2) + b"1]}"),
        ("/v1/completions", b'{"prompt": "' + b"\\n" * (size // 2) + b'"}'),
        ("/v1/completions", b'{"prompt": "' + b"\\u4e2d" * (size // 6) + b'"}'),
        ("/v1/completions", b'{"prompt": "x", "user": [' + b"0.1," * (size // 4) + b"1]}"),
        ("/v1/completions", b'{"prompt": "x", "metadata": {' + b'"a":1,' * (size // 6) + b'"b":1}}'),
        ("/v1/completions", b'{"prompt": ["' + b'","'.join([b"w" * 50_000] * 250) + b'"]}'),
        ("/v1/embeddings", b'{"input": ["' + b'","'.join([b"w " * 3000] * 2000) + b'"]}'),
        ("/v1/chat/completions", user % (b"word " * (size // 5))),
        ("/v1/chat/completions", b'{"messages": [' + many + b'], "max_tokens": 1}'),
        ("/v1/chat/completions", b'{"messages": [' + b"{}," * 99_999 + b'{}], "max_tokens": 1}'),
        ("/v1/messages", user % (b"word " * (size // 5))),
        ("/v1/responses", b'{"input": "' + b"word " * (size // 5) + b'"}'),
        ("/tokenize", b'{"prompt": "' + b"word " * (size // 5) + b'"}'),
        ("/detokenize", b'{"tokens": [' + b"5," * 900_000 + b"5]}"),
        ("/detokenize", b'{"tokens": [' + b"5," * (size // 2) + b"5]}"),
    ]


@pytest.mark.slow
def test_the_server_answers_others_while_all_of_it_comes_at_once(server: ServerProcess) -> None:
    def send(path: str, content: bytes) -> int:
        return server.http.post(path, content=content, headers=JSON, timeout=300).status_code

    bombs = bomb_bodies()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as senders, PauseProbe(server.url) as probe:
        bodies: list[Future[Any]] = [senders.submit(send, path, content) for path, content in bombs]
        raws: list[Future[Any]] = [senders.submit(talk, server, raw) for raw, _, _ in RAW.values()]
        wait([*bodies, *raws])
    for (path, content), answer in zip(bombs, bodies, strict=True):
        assert answer.result() in (200, 400), (path, content[:40], answer.result())
    took_s = time.monotonic() - began
    print(f"the longest wait for /health was {probe.worst_s * 1000:.0f} ms of {took_s:.1f} s")
    assert probe.worst_s < took_s / 4
    assert is_well(server)
