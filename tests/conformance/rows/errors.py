"""Errors: status, type, code, param and headers."""

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import psutil

from tests.conformance.api import JSON, LONG, Api, check_error, error_of, small_server
from tests.conformance.registry import row
from tests.conformance.rows.streaming import DEADLINES_S
from tests.conformance.sse import Event, read_events, read_json

STREAM = {**LONG, "max_tokens": 100, "stream": True}


@row("errors.shape", "An error is `{error: {message, type, param, code}}`; its code is a string or null")
def shape(api: Api) -> None:
    error = api.refuse_completion(n=0)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "n", None)
    assert api.refuse_chat(n="2")["param"] == "n"


@row("errors.message", "The message gives the limit and the value that broke it")
def message(api: Api) -> None:
    for body, limit, value in (
        ({"n": 129}, "128", "129"),
        ({"temperature": 2.5}, "2", "2.5"),
        ({"logprobs": 21}, "20", "21"),
        ({"logit_bias": {"1": 101}}, "100", "101"),
        ({"stop_token_ids": [999_999]}, "2047", "999999"),
    ):
        text = api.refuse_completion(**body)["message"]
        assert limit in text
        assert value in text


@row("errors.route", "An unknown path is 404 `unknown_url`, and says which one was probably meant")
def route(api: Api) -> None:
    for path, hint in {"/v1/nothing": "/docs", "/chat/completions": "did you mean /v1/chat/completions?"}.items():
        error = error_of(api.http.post(path, json={}), 404)
        assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_url")
        assert hint in error["message"]


@row("errors.method", "A wrong method is 405, and `Allow` names all that the path has")
def method(api: Api) -> None:
    for path, allowed in {"/v1/completions": "POST", "/ready": "GET, HEAD", "/v1/models": "GET, HEAD"}.items():
        response = api.http.request("PATCH", path)
        assert error_of(response, 405)["type"] == "invalid_request_error"
        assert response.headers["allow"] == allowed


@row("errors.host", "A request names one host, which on a loopback address is a loopback name")
def host(api: Api) -> None:
    for names in ([], ["localhost", "localhost"], ["evil.example"]):
        assert talk_raw(api, [f"host: {name}" for name in names]).startswith(b"HTTP/1.1 400 ")
    assert talk_raw(api, ["host: localhost:1"]).startswith(b"HTTP/1.1 200 ")


def talk_raw(api: Api, lines: list[str]) -> bytes:
    """The answer to a request for /live with this head."""
    address = urlsplit(api.url)
    head = "\r\n".join(["GET /live HTTP/1.1", "connection: close", *lines, "", ""])
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(head.encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


@row("errors.media_type", "A content type other than JSON, or a compressed body, is 415")
def media_type(api: Api) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": JSON, "content-encoding": "gzip"}):
        response = api.http.post("/v1/completions", content=b'{"prompt":"x"}', headers=headers)
        assert error_of(response, 415)["type"] == "invalid_request_error"


@row("errors.body_size", "A body over the limit is 413 with the limit, announced or not")
def body_size(api: Api) -> None:
    for content in (b" " * 10_001, (b" " * 5000 for _ in range(4))):
        response = api.small.api.http.post("/v1/completions", content=content, headers={"content-type": JSON})
        assert "10000" in error_of(response, 413)["message"]


@row("errors.queue_full", "A full queue is 429 `queue_full` with `Retry-After` in seconds")
def queue_full(api: Api) -> None:
    with api.small.busy(num_waiting=2):
        response = api.small.api.http.post("/v1/completions", json={"prompt": "x"})
    error = error_of(response, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    assert 1 <= int(response.headers["retry-after"]) <= 120


@row("errors.queued_too_long", "A deadline that passes in the queue is 408 too")
def queued_too_long(api: Api) -> None:
    with api.small.busy():
        error = api.small.api.refuse_completion(408, timeout=0.1, stream=True)
    assert error["type"] == "timeout"


@row("errors.deadline_header", "`X-Request-Timeout` sets a deadline, as `timeout` does")
def deadline_header(api: Api) -> None:
    http = api.small.api.http
    with api.small.busy():
        error = error_of(http.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-timeout": "0.1"}), 408)
    assert error["type"] == "timeout"
    refused = http.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-timeout": "soon"})
    assert error_of(refused, 400)["param"] == "x-request-timeout"


@row("errors.quota", "A key that has all that it may have is 429 `quota` with `Retry-After` in seconds")
def quota(_: Api) -> None:
    with small_server("--max-requests-per-key", "1") as small, small.busy():
        response = small.api.http.post("/v1/completions", json={"prompt": "x"})
    error = error_of(response, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "quota")
    assert 1 <= int(response.headers["retry-after"]) <= 120


@row("errors.draining", "A server told to end finishes its streams; new work is 503 `draining`, /live stays green")
def draining(_: Api) -> None:
    with small_server() as small, small.api.http.stream("POST", "/v1/completions", json=STREAM) as stream:
        http = small.api.http
        lines = stream.iter_lines()
        next(lines)
        small.process.terminate()
        while http.get("/ready").status_code == 200:
            pass
        refused = http.post("/v1/completions", json={"prompt": "x"})
        live = http.get("/live")
        rest = [line for line in lines if line]
    error = error_of(refused, 503)
    assert (error["type"], error["code"], live.status_code) == ("server_error", "draining", 200)
    assert int(refused.headers["retry-after"]) >= 1
    assert rest[-1] == "data: [DONE]"
    assert read_json(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


@row(
    "errors.engine", "When the engine dies for good, streams end with an error and [DONE], and whole answers with a 5xx"
)
def engine(_: Api) -> None:
    with small_server("--max-engine-restarts", "0") as small, ThreadPoolExecutor() as threads:
        with small.api.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream:
            pieces = stream.iter_bytes()
            head = next(pieces)
            whole = threads.submit(small.api.http.post, "/v1/completions", json={"prompt": "x"})
            small.wait_for_queue(1)
            [process] = psutil.Process(small.process.pid).children()
            process.kill()
            *_chunks, error, done = read_events(head + b"".join(pieces))
        assert whole.result().status_code in {500, 503}
        assert error_of(whole.result(), whole.result().status_code)["type"] == "server_error"
    assert done == Event("[DONE]")
    assert check_error(read_json(error.data)["error"])["type"] == "server_error"


@row("errors.sdk_raises", "On an error inside a stream the SDK raises")
def sdk_raises(api: Api) -> None:
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": api.model["id"], "prompt": "On", "n": 16, "max_tokens": 1900, "stream": True}
    assert any(raises_within(client, asked, timeout_s) for timeout_s in DEADLINES_S)


def raises_within(client: openai.OpenAI, asked: dict[str, Any], timeout_s: float) -> bool:
    """Whether a stream that has begun raises; False if it did not begin before its deadline."""
    try:
        stream = client.completions.create(**asked, extra_body={"ignore_eos": True, "timeout": timeout_s})
    except openai.APIStatusError:
        return False
    try:
        list(stream)
    except openai.APIError:
        return True
    raise AssertionError("the SDK took the error for an end")
