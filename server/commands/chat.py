"""`orcinus chat`: a conversation with a running server, in the terminal.

A client of the HTTP API like any other: it knows no engine, and works with any server that speaks the protocol.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import httpx

from orcinus.config.arguments import Parser
from orcinus.config.sources import env_name
from orcinus.config.values import parse_strings
from orcinus.engine.errors import OrcinusError

_DESCRIPTION = "Talk to a running server. With a question, or one on standard input, answer it and exit."
_EPILOG = """\
examples:
  orcinus chat
  orcinus chat "What is the capital of France?"
  echo "Count to five" | orcinus chat --temperature 0
"""
_COMMANDS = """\
  /system [TEXT]  show the system message, or set it
  /reset          forget the conversation
  /help           this text
  /exit           leave (or Ctrl-D); Ctrl-C stops an answer\
"""


class ChatError(OrcinusError):
    """The server cannot be reached, or refuses; the message is for the user."""


def main(argv: Sequence[str]) -> int:
    args = _parser().parse(argv)
    with ChatClient(args.base_url, args.api_key or _key_from_environment(), _parameters(args)) as client:
        if args.question is not None or not sys.stdin.isatty():
            return _answer_once(client, args)
        return _Terminal(client, args.system).run()


class ChatClient:
    """Streams answers of the chat endpoint of the server at `base_url`, all with the same `parameters`.

    Its methods raise `ChatError`.
    """

    def __init__(self, base_url: str, api_key: str | None, parameters: dict[str, Any]) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._parameters = parameters
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # An answer may take as long as it likes to begin; only connecting is bounded.
        timeout = httpx.Timeout(None, connect=5.0)
        self._http = httpx.Client(base_url=self.base_url, headers=headers, timeout=timeout)

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()

    def model(self) -> str:
        """Return the name of the model that will answer."""
        if "model" in self._parameters:
            return str(self._parameters["model"])
        with self._explained():
            response = self._http.get("/v1/models")
            _check(response)
            return str(response.json()["data"][0]["id"])

    def stream(self, messages: Sequence[dict[str, str]]) -> Generator[str, None, None]:
        """Return the answer to `messages`, piece by piece. Closing the iterator early stops the server's work."""
        body = {"messages": list(messages), "stream": True, **self._parameters}
        with self._explained(), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
            _check(response)
            for line in response.iter_lines():
                yield from _pieces(line)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            hint = "start one with: orcinus serve"
            raise ChatError(f"no server answers at {self.base_url}; {hint}") from None
        except httpx.HTTPError as error:
            raise ChatError(f"the connection to {self.base_url} failed: {error}") from None
        except (httpx.InvalidURL, json.JSONDecodeError, KeyError, IndexError) as error:
            raise ChatError(f"{self.base_url} does not answer like an OpenAI server ({error})") from None


class _Terminal:
    """The interactive conversation: a prompt, a history and a few commands."""

    def __init__(self, client: ChatClient, system: str | None) -> None:
        self._client = client
        self._system = system
        self._history: list[dict[str, str]] = []

    def run(self) -> int:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - importing it gives input() editing and a history
        print(f"Talking to {self._client.model()} at {self._client.base_url}. /help lists the commands.")
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    break
            elif line:
                self._ask(line)
        return 0

    def _read(self) -> str | None:
        """Return the next line, or None at the end of the input."""
        try:
            return input("\n> ").strip()
        except KeyboardInterrupt:
            return ""
        except EOFError:
            print()
            return None

    def _command(self, line: str) -> bool:
        """Do what `line` says; False to leave."""
        name, _, text = line.partition(" ")
        if name in ("/exit", "/quit"):
            return False
        if name == "/reset":
            self._history.clear()
            print("The conversation is forgotten.")
        elif name == "/system":
            self._set_system(text.strip())
        elif name == "/help":
            print(_COMMANDS)
        else:
            print(f"Unknown command: {name}\n{_COMMANDS}")
        return True

    def _set_system(self, text: str) -> None:
        if text:
            self._system = text
        print(f"System message: {self._system or 'none'}")

    def _ask(self, question: str) -> None:
        """Print the answer as it comes. What was said before an interruption stays in the history."""
        asked = {"role": "user", "content": question}
        pieces: list[str] = []
        try:
            _print_answer(self._client, [*_system_message(self._system), *self._history, asked], pieces)
        except KeyboardInterrupt:
            print(" (stopped)")
        except ChatError as error:
            print(f"{error}", file=sys.stderr)
        if pieces:
            self._history += [asked, {"role": "assistant", "content": "".join(pieces)}]


def _answer_once(client: ChatClient, args: argparse.Namespace) -> int:
    question = args.question if args.question is not None else sys.stdin.read().strip()
    if not question:
        raise ChatError("there is no question")
    _print_answer(client, [*_system_message(args.system), {"role": "user", "content": question}], [])
    return 0


def _print_answer(client: ChatClient, messages: Sequence[dict[str, str]], pieces: list[str]) -> None:
    """Print the answer piece by piece, and add the pieces to `pieces` so that they survive an interruption."""
    with contextlib.closing(client.stream(messages)) as stream:
        for piece in stream:
            pieces.append(piece)
            print(_printable(piece), end="", flush=True)
    print()


def _printable(text: str) -> str:
    """Remove control characters: a model must not be able to steer the terminal."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def _system_message(text: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}] if text else []


def _pieces(line: str) -> Iterator[str]:
    """Return the text in one line of a stream of server-sent events."""
    if not line.startswith("data:"):
        return
    data = line.removeprefix("data:").strip()
    if data == "[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        raise ChatError(event["error"]["message"])
    for choice in event["choices"]:
        if content := choice["delta"].get("content"):
            yield content


def _check(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    raise ChatError(f"{message} (HTTP {response.status_code})")


def _key_from_environment() -> str | None:
    """Return the first key of the variable that the server reads too, where it may hold several."""
    keys = parse_strings(os.environ.get(env_name("api_key"), ""))
    return keys[0] if keys else None


def _parameters(args: argparse.Namespace) -> dict[str, Any]:
    return {
        name: getattr(args, name) for name in ("model", "temperature", "max_tokens") if getattr(args, name) is not None
    }


def _parser() -> Parser:
    parser = Parser("orcinus chat", "[QUESTION] [OPTIONS]", _DESCRIPTION, _EPILOG)
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="ask this, print the answer and exit")
    parser.add_argument(
        "--base-url",
        default="http://127.0.0.1:8000",
        metavar="URL",
        help="where the server is [default: http://127.0.0.1:8000]",
    )
    parser.add_argument("--api-key", metavar="KEY", help=f"key to send [{env_name('api_key')}]")
    parser.add_argument("--model", metavar="NAME", help="model to ask, where the server has several")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 for the likeliest answer, up to 2")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    return parser
