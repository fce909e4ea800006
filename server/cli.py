"""The `orcinus` command: picks a command and turns what goes wrong into one line and an exit code.

It imports a command only when it is run, so that `orcinus --help` is immediate. Exit codes: 0 done, 1 it failed,
2 it was called wrongly, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "serve": "serve a model over the OpenAI HTTP API",
    "chat": "talk to a running server from the terminal",
    "launch": "start a coding agent (Claude Code, Codex, opencode) on a running server",
    "generate": "run a file of prompts (OpenAI batch format) through the engine, without a server",
    "usage": "show what each named key has used, from the file of --usage-db",
    "bench": "measure: load a server, sweep batch sizes, compare the batching strategies",
}

_HELP = """\
Orcinus {version}: an LLM inference server with continuous batching, for GPUs and CPUs.

It serves a transformers model (a directory, a hub id or a GGUF file) over the OpenAI API, so that existing
clients work unchanged. Without a model it serves a small one of its own, to try things out.

usage: orcinus COMMAND [OPTIONS]

Commands:
{commands}

Examples:
  orcinus serve                                  the demo model on http://127.0.0.1:8000
  orcinus serve Qwen/Qwen3-0.6B --max-num-seqs 32
  orcinus serve ./my-model --host 0.0.0.0 --api-key "$KEY"
  orcinus chat                                   in a second terminal
  orcinus chat "What is the capital of France?"
  orcinus launch claude                          Claude Code on it
  orcinus generate prompts.jsonl -o answers.jsonl
  orcinus bench serve --base-url http://127.0.0.1:8000 --max-concurrency 32

Settings come from the command line, then ORCINUS_* environment variables, then a YAML file (--config FILE or
ORCINUS_CONFIG), then defaults. --max-num-seqs 8, ORCINUS_MAX_NUM_SEQS=8 and "max_num_seqs: 8" say the same.
`orcinus serve --help` lists all of them.

  -h, --help     this text, or that of a command: orcinus COMMAND --help
  --version      the version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        return _print_help()
    if words[0] in ("-V", "--version"):
        print(f"orcinus {_version()}")
        return 0
    if words[0] not in COMMANDS:
        return _refuse(words[0])
    return _run(words[0], words[1:])


def _run(command: str, words: Sequence[str]) -> int:
    """Run one command; errors that we raise on purpose become one line each, all others are bugs."""
    from orcinus.config.values import SettingsError
    from orcinus.engine.errors import OrcinusError

    try:
        exit_code: int = import_module(f"orcinus.server.commands.{command}").main(words)
        sys.stdout.flush()
    except SettingsError as error:
        return _report(command, error, 2, f"See 'orcinus {command} --help'.")
    except OrcinusError as error:
        return _report(command, error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return exit_code


def _report(command: str, error: Exception, exit_code: int, hint: str = "") -> int:
    for line in str(error).splitlines():
        print(f"orcinus {command}: {line}", file=sys.stderr)
    if hint:
        print(hint, file=sys.stderr)
    return exit_code


def _refuse(word: str) -> int:
    if word.startswith("-"):
        print(f"orcinus: unknown flag: {word}; flags follow a command: orcinus serve {word}", file=sys.stderr)
        return 2
    from orcinus.config.near_names import near_names

    close = near_names(word, COMMANDS, count=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
    print(f"orcinus: unknown command: {word}; {hint}", file=sys.stderr)
    return 2


def _print_help() -> int:
    commands = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    print(_HELP.format(version=_version(), commands=commands), end="")
    return 0


def _version() -> str:
    from orcinus.config.version import VERSION

    return VERSION


if __name__ == "__main__":
    sys.exit(main())
