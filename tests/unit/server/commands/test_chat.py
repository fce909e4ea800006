"""`orcinus chat` against a server that says what the test tells it to."""

import io
import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orcinus.server.cli import main
from tests.certificates import make_certificate

Captured = pytest.CaptureFixture[str]


class Stub(ThreadingHTTPServer):
    """Records the bodies it gets and answers with `lines`, as server-sent events."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.models: Any = {"object": "list", "data": [{"id": "stub-model"}]}
        self.status = 200
        self.lines = [_chunk("Par"), _chunk("is"), "[DONE]"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self._send(json.dumps(self.server.models))

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        self.server.keys.append(self.headers.get("Authorization"))
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.status != 200:
            self._send(json.dumps({"error": {"message": "the queue is full"}}))
        else:
            self._send("".join(f"data: {line}\n\n: ping\n\n" for line in self.server.lines))

    def _send(self, text: str) -> None:
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None: ...


def _chunk(text: str) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make `input()` return these lines, then the end of the input. An exception is raised instead."""

    def script(*lines: str | BaseException) -> None:
        remaining = list(lines)

        def read(prompt: str = "") -> str:
            if not remaining:
                raise EOFError
            line = remaining.pop(0)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    return script


def test_a_question_is_answered_and_the_program_ends(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["chat", "Capital of France?", "--base-url", f"{stub.url}/v1", "--system", "Be brief."]
    assert main([*argv, "--temperature", "0", "--max-tokens", "9", "--model", "m"]) == 0
    assert capsys.readouterr().out == "Paris\n"
    assert stub.bodies == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Capital of France?"},
            ],
            "stream": True,
            "model": "m",
            "temperature": 0.0,
            "max_tokens": 9,
        }
    ]


def test_the_question_may_come_from_a_pipe(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Capital\nof France?\n"))
    assert main(["chat", "--base-url", stub.url]) == 0
    assert capsys.readouterr().out == "Paris\n"
    assert stub.bodies[0]["messages"] == [{"role": "user", "content": "Capital\nof France?"}]


def test_the_conversation_goes_on_until_it_is_reset(
    stub: Stub, say: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    say("one", "/system Be brief.", "two", "/reset", "three")
    assert main(["chat", "--base-url", stub.url]) == 0
    assert "stub-model" in capsys.readouterr().out
    system = {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": "Paris"}
    assert [body["messages"] for body in stub.bodies] == [
        [{"role": "user", "content": "one"}],
        [system, {"role": "user", "content": "one"}, answer, {"role": "user", "content": "two"}],
        [system, {"role": "user", "content": "three"}],
    ]


def test_commands_are_not_sent(stub: Stub, say: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    say("/help", "/sing", "", KeyboardInterrupt(), "/exit", "never read")
    assert main(["chat", "--base-url", stub.url]) == 0
    assert stub.bodies == []
    assert "Unknown command: /sing" in capsys.readouterr().out


def test_an_interrupt_stops_the_answer_and_not_the_program(
    stub: Stub, say: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orcinus.server.commands import chat

    shown: list[str] = []

    def interrupt_after_the_first_piece(text: str) -> str:
        shown.append(text)
        if len(shown) == 2:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(chat, "_printable", interrupt_after_the_first_piece)
    say("one", "two")
    assert main(["chat", "--base-url", stub.url]) == 0
    assert "(stopped)" in capsys.readouterr().out
    assert [message["content"] for message in stub.bodies[1]["messages"]] == ["one", "Paris", "two"]


def test_a_failed_question_is_not_part_of_the_history(
    stub: Stub, say: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub.lines = [json.dumps({"error": {"message": "the engine broke"}}), "[DONE]"]
    say("one", "two")
    assert main(["chat", "--base-url", stub.url]) == 0
    assert "the engine broke" in capsys.readouterr().err
    assert [message["content"] for message in stub.bodies[1]["messages"]] == ["two"]


def test_a_refusal_is_one_line_and_exit_code_1(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.status = 429
    assert main(["chat", "hello", "--base-url", stub.url]) == 1
    assert capsys.readouterr().err == "orcinus chat: the queue is full (HTTP 429)\n"


def test_without_a_server_it_says_how_to_start_one(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.server_close()
    assert main(["chat", "hello", "--base-url", stub.url]) == 1
    message = f"orcinus chat: no server answers at {stub.url}; start one with: orcinus serve\n"
    assert capsys.readouterr().err == message


def test_the_key_comes_from_the_flag_or_else_the_environment(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCINUS_API_KEY", "first,second")
    assert main(["chat", "hello", "--base-url", stub.url]) == 0
    assert main(["chat", "hello", "--base-url", stub.url, "--api-key", "mine"]) == 0
    assert stub.keys == ["Bearer first", "Bearer mine"]


def test_a_model_cannot_steer_the_terminal(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.lines = [_chunk("a\x1b[2Jb\u009bc\n\td é"), "[DONE]"]
    assert main(["chat", "hello", "--base-url", stub.url]) == 0
    assert capsys.readouterr().out == "a[2Jbc\n\td é\n"


PROXIES = [
    {"ALL_PROXY": "socks5://127.0.0.1:1"},
    {"all_proxy": "socks://127.0.0.1:1/"},
    {"HTTP_PROXY": "http://127.0.0.1:1"},
    {"http_proxy": "127.0.0.1:1", "no_proxy": "example.org"},
    {"HTTPS_PROXY": "nonsense"},
]


@pytest.mark.parametrize("variables", PROXIES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_proxies_do_not_matter_on_this_machine(
    variables: dict[str, str], host: str, stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["chat", "hello", "--base-url", stub.url.replace("127.0.0.1", host)]) == 0
    assert capsys.readouterr() == ("Paris\n", "")


def test_a_proxy_holds_for_other_machines(stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("http_proxy", stub.url)
    assert main(["chat", "hello", "--base-url", "http://llm.example:9"]) == 0
    assert stub.paths == ["http://llm.example:9/v1/chat/completions"]
    monkeypatch.setenv("no_proxy", "llm.example")
    assert main(["chat", "hello", "--base-url", "http://llm.example:9"]) == 1
    assert "no server answers at http://llm.example:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("socks5://user:secret@proxy.example:1", "proxy socks5://proxy.example:1 speaks SOCKS"),
        ("socks://proxy.example:1", "proxy socks://proxy.example:1 cannot be used"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_line(
    proxy: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert main(["chat", "hello", "--base-url", "http://llm.example:9"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "secret" not in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "http://", "ftp://a", "http://[::1", "http://h:99999", "http://h:x"]
)
def test_a_wrong_url_is_one_line_and_exit_code_2(url: str, capsys: Captured) -> None:
    assert main(["chat", "hello", "--base-url", url]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith(f"orcinus chat: --base-url {url!r} is no URL")
    assert error[1:] == ["See 'orcinus chat --help'."]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--base-url", "unix:orcinus.sock"], "a Unix socket is written unix:/path/of/the.sock"),
        (["--base-url", "https://localhost", "--cacert", "/no/file"], "--cacert /no/file: No such file or directory"),
    ],
)
def test_a_wrong_socket_or_certificate_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: Captured
) -> None:
    assert main(["chat", "hello", *argv]) == 2
    assert message in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    ("names", "is_trusted", "message"),
    [
        ("IP:127.0.0.1", False, "is not trusted: self-signed certificate; --cacert FILE names"),
        ("DNS:other.example", True, "is not trusted: IP address mismatch"),
        (None, False, "TLS with https://127.0.0.1:"),
    ],
)
def test_a_server_whose_certificate_is_not_trusted_is_told_from_none(
    stub: Stub, tmp_path: Path, capsys: Captured, names: str | None, is_trusted: bool, message: str
) -> None:
    options: list[str] = []
    if names is not None:
        pair = make_certificate(tmp_path, names=names)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certfile, pair.keyfile)
        stub.socket = context.wrap_socket(stub.socket, server_side=True)
        options = ["--cacert", str(pair.certfile)] if is_trusted else []
    assert main(["chat", "hello", "--base-url", stub.url.replace("http:", "https:"), *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "no server answers" not in error
    assert ("--cacert" in error) == (names is not None and not is_trusted)


# httpcore leaves a socket that could not be connected to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_socket_on_which_nobody_listens_is_no_server(tmp_path: Path, capsys: Captured) -> None:
    assert main(["chat", "hello", "--base-url", f"unix:{tmp_path}/orcinus.sock"]) == 1
    assert f"no server answers at unix:{tmp_path}/orcinus.sock" in capsys.readouterr().err


def test_a_key_may_have_any_letters_and_no_control_characters(stub: Stub, capsys: Captured) -> None:
    assert main(["chat", "hello", "--base-url", stub.url, "--api-key", " schlüssel\n"]) == 0
    assert stub.keys == ["Bearer schlüssel".encode().decode("latin-1")]
    capsys.readouterr()
    assert main(["chat", "hello", "--base-url", stub.url, "--api-key", "secret\nX-Other: 1"]) == 2
    error = capsys.readouterr().err
    assert "a key cannot have control characters" in error
    assert "secret" not in error


NOTHING: list[Any] = [
    {},
    {"choices": None},
    {"choices": []},
    {"choices": [None]},
    {"choices": [{}]},
    {"choices": [{"delta": None}]},
    {"choices": [{"delta": {"content": None}}]},
    {"choices": [{"delta": {"content": [1]}}]},
    {"error": None, "choices": []},
    [],
    None,
]


@pytest.mark.parametrize("event", NOTHING)
def test_events_without_text_are_passed_over(event: Any, stub: Stub, capsys: Captured) -> None:
    stub.lines = [_chunk("Par"), json.dumps(event), "", _chunk("is"), "[DONE]"]
    assert main(["chat", "hello", "--base-url", stub.url]) == 0
    assert capsys.readouterr() == ("Paris\n", "")


@pytest.mark.parametrize("lines", [[_chunk("x")], [], [json.dumps({"choices": []})]])
def test_an_answer_that_is_cut_off_is_one_line_and_exit_code_1(lines: list[str], stub: Stub, capsys: Captured) -> None:
    stub.lines = lines
    assert main(["chat", "hello", "--base-url", stub.url]) == 1
    assert capsys.readouterr().err.endswith("ended the answer before it was complete\n")


def test_an_answer_is_complete_with_its_reason_alone(stub: Stub, capsys: Captured) -> None:
    stub.lines = [_chunk("x"), json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})]
    assert main(["chat", "hello", "--base-url", stub.url]) == 0
    assert capsys.readouterr() == ("x\n", "")


@pytest.mark.parametrize("error", ["it broke", {"message": "it broke"}])
def test_an_error_in_the_stream_is_one_line(error: Any, stub: Stub, capsys: Captured) -> None:
    stub.lines = [json.dumps({"error": error})]
    assert main(["chat", "hello", "--base-url", stub.url]) == 1
    assert capsys.readouterr().err == "orcinus chat: it broke\n"


@pytest.mark.parametrize("models", [None, [], {}, {"data": None}, {"data": []}, {"data": [{}]}])
def test_what_is_no_list_of_models_is_one_line(
    models: Any, stub: Stub, say: Callable[..., None], capsys: Captured
) -> None:
    stub.models = models
    say()
    assert main(["chat", "--base-url", stub.url]) == 1
    error = capsys.readouterr().err
    assert f"{stub.url} does not answer like an OpenAI server" in error
    assert error.count("\n") == 1


def _thought(**delta: str) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta}]})


THINKS = [
    _thought(reasoning_content="Hm, ", reasoning="Hm, "),
    _thought(reasoning="France."),
    _chunk("Paris"),
    "[DONE]",
]


def test_a_question_shows_what_the_model_thinks_beside_the_answer(stub: Stub, capsys: Captured) -> None:
    stub.lines = THINKS
    assert main(["chat", "hello", "--base-url", stub.url]) == 0
    assert capsys.readouterr() == ("Paris\n", "Hm, France.\n\n")


def test_a_conversation_shows_what_the_model_thinks_and_does_not_send_it_back(
    stub: Stub, say: Callable[..., None], capsys: Captured
) -> None:
    stub.lines = THINKS
    say("one", "two")
    assert main(["chat", "--base-url", stub.url]) == 0
    assert capsys.readouterr().out.count("Hm, France.\n\nParis\n") == 2
    assert [message["content"] for message in stub.bodies[1]["messages"]] == ["one", "Paris", "two"]
