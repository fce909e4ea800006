"""`orcinus chat`: a conversation with a running server, in the terminal.

A client of the HTTP API like any other: it knows no engine, and works with any server that speaks the protocol.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from orcinus.config.arguments import Parser
from orcinus.config.sources import env_name
from orcinus.config.values import parse_strings
from orcinus.server.commands.chat_client import ChatClient, ChatError

_DESCRIPTION = "Talk to a running server. With a question, or one on standard input, answer it and exit."
_EPILOG = """\
examples:
  orcinus chat
  orcinus chat "What is the capital of France?"
  echo "Count to five" | orcinus chat --temperature 0

HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY hold for servers on other machines; this one is reached directly.
"""
_COMMANDS = """\
  /system [TEXT]  show the system message, or set it
  /reset          forget the conversation
  /help           this text
  /exit           leave (or Ctrl-D); Ctrl-C stops an answer\
"""


def main(argv: Sequence[str]) -> int:
    args = _parser().parse(argv)
    key = args.api_key or _key_from_environment()
    with ChatClient(args.base_url, key, _parameters(args), args.cacert) as client:
        if args.question is not None or not sys.stdin.isatty():
            return _answer_once(client, args)
        return _Terminal(client, args.system).run()


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
    thoughts = sys.stdout if sys.stdout.isatty() else sys.stderr  # what is piped on is the answer alone
    _print_answer(client, [*_system_message(args.system), {"role": "user", "content": question}], [], thoughts)
    return 0


def _print_answer(
    client: ChatClient, messages: Sequence[dict[str, str]], pieces: list[str], thoughts: TextIO | None = None
) -> None:
    """Print the answer piece by piece, and add the pieces to `pieces` so that they survive an interruption.

    What the model thinks before goes to `thoughts`, or to the answer's place, and is no part of the answer.
    """
    printed = _Thoughts(thoughts or sys.stdout)
    with contextlib.closing(client.stream(messages)) as stream:
        try:
            for piece in stream:
                if piece.is_reasoning:
                    printed.write(_printable(piece.text))
                    continue
                printed.end()
                pieces.append(piece.text)
                print(_printable(piece.text), end="", flush=True)
        finally:
            printed.end()
    print()


class _Thoughts:
    """Writes what a model thinks: dimmed on a terminal, with an empty line before what comes next."""

    def __init__(self, target: TextIO) -> None:
        self._target = target
        self._is_open = False
        self._dim, self._plain = ("\x1b[2m", "\x1b[0m") if target.isatty() else ("", "")

    def write(self, text: str) -> None:
        self._target.write(text if self._is_open else self._dim + text)
        self._target.flush()
        self._is_open = True

    def end(self) -> None:
        if self._is_open:
            self._target.write(f"{self._plain}\n\n")
            self._target.flush()
        self._is_open = False


def _printable(text: str) -> str:
    """Remove control characters: a model must not be able to steer the terminal."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def _system_message(text: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}] if text else []


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
        help="where the server is; unix:/path for a Unix socket [default: http://127.0.0.1:8000]",
    )
    parser.add_argument(
        "--cacert", type=Path, metavar="FILE", help="certificates to trust, where the server's is nobody else's"
    )
    parser.add_argument("--api-key", metavar="KEY", help=f"key to send [{env_name('api_key')}]")
    parser.add_argument("--model", metavar="NAME", help="model to ask, where the server has several")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 for the likeliest answer, up to 2")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    return parser
