"""How the rows talk to a server: every answer is checked against its type on the way. Knows no row."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from openai import BaseModel
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from prometheus_client.parser import text_string_to_metric_families

from tests.conformance.schema import check_embeddings, check_type
from tests.conformance.sse import read_chunks, read_json
from tests.server_process import LIGHT, ServerProcess

TIMEOUT_S = 60.0
KEY = "conformance-key"
USER_KEY = "users-key"
KEY_FILE = f"""\
keys:
- {{name: conformance, key: {KEY}, admin: true}}
- {{name: user, key: {USER_KEY}, models: [no-model-of-this-server]}}
"""
LONG: dict[str, Any] = {"prompt": "On and on", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
JSON = "application/json"


class Api:
    """A client of one running server. Greedy unless a row says otherwise. The other servers it starts end with it."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self._servers = contextlib.ExitStack()
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.http.close()
        self._servers.close()

    @cached_property
    def small(self) -> "SmallServer":
        """A server with a key, which is soon full; for all rows that leave it as they found it."""
        return self._servers.enter_context(small_server())

    @cached_property
    def openapi(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/openapi.json").json()
        return found

    @cached_property
    def model(self) -> dict[str, Any]:
        """The one that is served."""
        [found] = self.ask("GET", "/v1/models")["data"]
        return check_type(Model, found)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A JSON object that comes with status 200."""
        response = self.http.request(method, path, json=body)
        assert response.status_code == 200, f"{path}: status {response.status_code}: {response.text[:500]}"
        assert response.headers["content-type"] == JSON
        found: dict[str, Any] = read_json(response.content)
        return found

    def complete(self, prompt: Any = "Once upon a time", **body: Any) -> dict[str, Any]:
        """A whole text completion."""
        answer = self.ask("POST", "/v1/completions", {"prompt": prompt, "temperature": 0, **body})
        return checked_whole(Completion, answer)

    def chat(self, messages: Any = "What is the capital of France?", **body: Any) -> dict[str, Any]:
        """A whole chat completion; a string is a user's message."""
        answer = self.ask("POST", "/v1/chat/completions", {"messages": talk(messages), "temperature": 0, **body})
        return checked_whole(ChatCompletion, answer)

    def complete_stream(self, prompt: Any = "Once upon a time", **body: Any) -> list[dict[str, Any]]:
        stream = self.stream("/v1/completions", {"prompt": prompt, "temperature": 0, **body})
        return [check_type(Completion, chunk) for chunk in read_chunks(stream)]

    def chat_stream(self, messages: Any = "What is the capital of France?", **body: Any) -> list[dict[str, Any]]:
        stream = self.stream("/v1/chat/completions", {"messages": talk(messages), "temperature": 0, **body})
        return [check_type(ChatCompletionChunk, chunk) for chunk in read_chunks(stream)]

    def respond(self, given: Any = "What is the capital of France?", **body: Any) -> dict[str, Any]:
        """A whole answer of the responses API."""
        answer = self.ask("POST", "/v1/responses", {"input": given, "temperature": 0, **body})
        return check_type(Response, answer)

    def embed(self, given: Any, **body: Any) -> dict[str, Any]:
        return check_embeddings(self.ask("POST", "/v1/embeddings", {"input": given, **body}))

    def tokens(self, text: str) -> list[int]:
        found: list[int] = self.ask("POST", "/tokenize", {"prompt": text})["tokens"]
        return found

    def metric(self, name: str) -> float:
        """The value of a sample without labels."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        [value] = [sample.value for family in families for sample in family.samples if sample.name == name]
        return value

    def stream(self, path: str, body: dict[str, Any]) -> bytes:
        """The bytes of a whole stream."""
        response = self.http.post(path, json={**body, "stream": True})
        assert response.status_code == 200, f"{path}: status {response.status_code}: {response.text[:500]}"
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        return response.content

    def refuse(self, path: str, body: Any, status: int = 400) -> dict[str, Any]:
        """The error that answers; bytes go out as they are."""
        content: Any = (
            {"content": body, "headers": {"content-type": JSON}} if isinstance(body, bytes) else {"json": body}
        )
        return error_of(self.http.post(path, **content), status)

    def refuse_completion(self, status: int = 400, **body: Any) -> dict[str, Any]:
        return self.refuse("/v1/completions", {"prompt": "x", **body}, status)

    def refuse_chat(self, status: int = 400, **body: Any) -> dict[str, Any]:
        return self.refuse("/v1/chat/completions", {"messages": talk("x"), **body}, status)


def talk(messages: Any) -> Any:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def checked_whole(kind: type[BaseModel], answer: dict[str, Any]) -> dict[str, Any]:
    check_type(kind, answer)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert all(choice["finish_reason"] is not None for choice in answer["choices"])
    return answer


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return what an error response says, whose shape is checked to the letter."""
    assert response.status_code == status, f"expected {status}, got {response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"] == JSON
    body = read_json(response.content)
    assert list(body) == ["error"]
    return check_error(body["error"])


def check_error(error: dict[str, Any]) -> dict[str, Any]:
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert isinstance(error["code"], str | None)
    return error


@dataclass(frozen=True, slots=True)
class SmallServer:
    """`process` has one slot, two places in the queue, and a key, which `api` sends."""

    process: ServerProcess
    api: Api

    @contextlib.contextmanager
    def busy(self, *, num_waiting: int = 0) -> Iterator[None]:
        """While its slot is taken, and so many places in the queue."""
        endless = {**LONG, "max_tokens": 2000, "stream": True}
        with (
            ThreadPoolExecutor() as threads,
            self.api.http.stream("POST", "/v1/completions", json=endless) as holder,
        ):
            pieces = holder.iter_bytes()
            next(pieces)
            for number in range(num_waiting):
                threads.submit(self.api.complete, max_tokens=1)
                self.wait_for_queue(number + 1)
            yield

    def wait_for_queue(self, depth: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while (current := self.api.metric("orcinus_queue_depth")) != depth:
            assert time.monotonic() < deadline, f"{current} requests are in the queue, not {depth}"


@contextlib.contextmanager
def small_server(*flags: str) -> Iterator[SmallServer]:
    """A server that may be broken. What it refuses has nothing to do with a model, so that its engine has none."""
    limits = ("--max-num-seqs", "1", "--max-queue-len", "2", "--max-body-bytes", "10000", "--keep-alive-s", "0.2")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys"
        file.write_text(KEY_FILE)
        keys = ("--api-key-file", str(file), "--usage-db", str(file.with_name("usage.db")))
        process = ServerProcess(*keys, *limits, *flags, module=LIGHT)
        try:
            with Api(process.url, KEY) as api:
                yield SmallServer(process, api)
        finally:
            process.close()
