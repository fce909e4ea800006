"""Errors: status, type, code, param and headers."""

import signal
import threading
from collections.abc import Iterable
from typing import Any

import openai
import psutil

from tests.conformance.api import JSON, KEY, Api, check_error, error_of, small_server
from tests.conformance.registry import row
from tests.conformance.rows.streaming import LONG
from tests.conformance.sse import Event, read_events, read_json
from tests.server_process import ServerProcess


@row(
    "errors.shape",
    "An error is `{error: {message, type, param, code}}`, its code a string or null, its param the field",
)
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


@row("errors.route", "An unknown path is 404 `unknown_url`")
def route(api: Api) -> None:
    error = error_of(api.http.post("/v1/nothing", json={}), 404)
    assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_url")


@row("errors.method", "A wrong method is 405, and `Allow` names the right one")
def method(api: Api) -> None:
    response = api.http.get("/v1/completions")
    assert error_of(response, 405)["type"] == "invalid_request_error"
    assert "POST" in response.headers["allow"]


@row("errors.media_type", "A content type other than JSON, or a compressed body, is 415")
def media_type(api: Api) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": JSON, "content-encoding": "gzip"}):
        response = api.http.post("/v1/completions", content=b'{"prompt":"x"}', headers=headers)
        assert error_of(response, 415)["type"] == "invalid_request_error"


@row("errors.body_size", "A body over the limit is 413 with the limit, announced or not")
def body_size(_: Api) -> None:
    with small_server("--max-body-bytes", "1000") as (_server, api):
        for content in (b" " * 1001, (b" " * 500 for _ in range(4))):
            response = api.http.post("/v1/completions", content=content, headers={"content-type": JSON})
            assert "1000" in error_of(response, 413)["message"]


@row("errors.queue_full", "A full queue is 429 `queue_full` with `Retry-After` in seconds")
def queue_full(_: Api) -> None:
    with small_server() as (server, api):
        waiters = [threading.Thread(target=api.stream, args=("/v1/completions", LONG)) for _ in range(2)]
        waiters[0].start()
        wait_for(server, "orcinus_slots_in_use")
        waiters[1].start()
        wait_for(server, "orcinus_queue_depth")
        response = api.http.post("/v1/completions", json={"prompt": "x"})
        for waiter in waiters:
            waiter.join()
    error = error_of(response, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    assert 1 <= int(response.headers["retry-after"]) <= 120


def wait_for(server: ServerProcess, metric: str) -> None:
    while server.metric(metric) == 0:
        assert server.process.poll() is None


@row(
    "errors.draining",
    "A server that is told to end finishes its streams; new work is 503 `draining`, /live stays green",
)
def draining(_: Api) -> None:
    with small_server() as (server, api):
        with api.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            while api.http.get("/ready").status_code == 200:
                pass
            refused = api.http.post("/v1/completions", json={"prompt": "x"})
            live = api.http.get("/live")
            rest = [line for line in lines if line]
        assert server.wait() == 0
    error = error_of(refused, 503)
    assert (error["type"], error["code"], live.status_code) == ("server_error", "draining", 200)
    assert int(refused.headers["retry-after"]) >= 1
    assert rest[-1] == "data: [DONE]"
    assert read_json(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


@row("errors.engine", "When the engine dies, streams end with an error on which the SDK raises, then [DONE]")
def engine(_: Api) -> None:
    with small_server("--max-num-seqs", "2") as (server, api):
        sdk = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
        chunks = sdk.completions.create(
            model=api.model["id"], prompt="On", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(chunks))
        *_chunks, error, done = read_events(killed_stream(server, api))
        assert raises(openai.APIError, chunks)
    assert done == Event("[DONE]")
    assert check_error(read_json(error.data)["error"])["type"] == "server_error"


def killed_stream(server: ServerProcess, api: Api) -> bytes:
    """What comes of a stream whose engine is killed after its first bytes."""
    with api.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream:
        pieces = stream.iter_bytes()
        head = next(pieces)
        [process] = psutil.Process(server.pid).children()
        process.kill()
        return head + b"".join(pieces)


def raises(kind: type[Exception], values: Iterable[Any]) -> bool:
    try:
        list(values)
    except kind:
        return True
    return False
