"""A server with an OpenAI API that a test makes as capable, or as broken, as it needs."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VOCABULARY = 50


class ScriptedServer(ThreadingHTTPServer):
    """Answers every prompt with as many tokens as it asks for, and keeps the bodies it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models = ["scripted", "other"]
        self.metrics: str | None = None
        self.tokenize: Callable[[dict[str, Any]], Any] | None = None
        self.takes_token_ids = True
        self.has_usage = True
        self.streams = True
        self.tokens_per_chunk = 1
        self.tokens_per_word = 1
        self.is_cut = False
        self.refuses: Callable[[dict[str, Any]], str | None] = lambda body: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def load(self) -> list[dict[str, Any]]:
        """The bodies without those that were sent to find out what the server takes."""
        return [body for body in self.bodies if body["max_tokens"] > 1]

    def count_prompt_tokens(self, body: dict[str, Any]) -> int:
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        return len(prompt.split()) * self.tokens_per_word + 3 if isinstance(prompt, str) else len(prompt)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._send(404 if self.server.metrics is None else 200, "text/plain", (self.server.metrics or "").encode())
            return
        self._send_json(200, {"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self._tokenize(body)
            return
        self.server.keys.append(self.headers.get("Authorization"))
        self.server.bodies.append(body)
        if (refusal := self._refusal(body)) is not None:
            self._send_json(400, {"error": {"message": refusal}})
        elif not self.server.streams:
            self._send_json(200, {"choices": [{"text": "whole"}]})
        else:
            self._stream(body)

    def log_message(self, *args: Any) -> None: ...

    def _tokenize(self, body: dict[str, Any]) -> None:
        if self.server.tokenize is None:
            self._send_json(404, {"detail": "Not Found"})
        else:
            self._send_json(200, self.server.tokenize(body))

    def _refusal(self, body: dict[str, Any]) -> str | None:
        if isinstance(body.get("prompt"), list) and not self.server.takes_token_ids:
            return "a prompt is a string"
        return self.server.refuses(body)

    def _send_json(self, status: int, content: Any) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, content_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self._events(body):
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            if self.server.is_cut and body["max_tokens"] > 1:
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def _events(self, body: dict[str, Any]) -> Iterator[str]:
        num_tokens = body["max_tokens"]
        for _ in range(-(-num_tokens // self.server.tokens_per_chunk)):
            piece = {"delta": {"content": "a"}} if "messages" in body else {"text": "a"}
            yield json.dumps({"choices": [{"index": 0, "finish_reason": None, **piece}]})
        yield json.dumps({"choices": [{"index": 0, "finish_reason": "length", "text": ""}]})
        if self.server.has_usage:
            counts = {"prompt_tokens": self.server.count_prompt_tokens(body), "completion_tokens": num_tokens}
            yield json.dumps({"choices": [], "usage": counts})
        yield "[DONE]"


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def as_vllm(body: dict[str, Any]) -> dict[str, Any]:
    """The answer of /tokenize to `{"prompt": ...}`."""
    return {"count": VOCABULARY, "max_model_len": 99, "tokens": [*range(100, 100 + VOCABULARY)]}


def as_llama_cpp(body: dict[str, Any]) -> dict[str, Any]:
    """The answer of /tokenize to `{"content": ...}`, which passes over everything else."""
    return {"tokens": [*range(200, 200 + VOCABULARY)] if "content" in body else []}
