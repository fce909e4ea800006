"""`orcinus launch`: a coding agent on a running server, without a file of its settings being touched."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from orcinus.config.addresses import url_of
from orcinus.config.arguments import Parser
from orcinus.config.settings import load_settings
from orcinus.config.sources import env_name
from orcinus.config.values import SettingsError, parse_strings
from orcinus.engine.errors import OrcinusError
from orcinus.server.commands.agents import AGENTS, Agent, Launch, ServedModel
from orcinus.server.commands.chat_client import ChatClient

_DESCRIPTION = """\
Start a coding agent (Claude Code, Codex or opencode) on a running server. Its own settings files stay as they are.

What comes after -- goes to the agent.
"""
_EPILOG = """\
examples:
  orcinus launch claude
  orcinus launch codex --model my-model -- exec "Explain this repository"
  orcinus launch opencode --base-url http://10.0.0.5:8000
  orcinus launch claude --print                  what to set, for a shell or a settings file
"""


class LaunchError(OrcinusError):
    """The agent cannot be started; the message is for the user."""


def main(argv: Sequence[str]) -> int:
    """Become the agent, or print what it would be told.

    Raises `SettingsError`, `LaunchError`, and `ChatError` where the server does not answer.
    """
    own, rest = _split(argv)
    args = _parse(own)
    agent = AGENTS[args.agent]
    launch = agent.launch(_served_model(args), os.environ)
    if not args.print:
        _become(agent, launch, rest)
    print(launch.printed)
    return 0


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the words of this command, and those of the agent."""
    if "--" not in argv:
        return argv, ()
    place = list(argv).index("--")
    return argv[:place], argv[place + 1 :]


def _parse(words: Sequence[str]) -> argparse.Namespace:
    try:
        args = _parser().parse(words)
    except SettingsError as error:
        raise SettingsError(f"{error}\nwhat is meant for the agent comes after --") from None
    if args.agent not in AGENTS:
        raise SettingsError(f"there is no agent {args.agent!r}: give one of {', '.join(AGENTS)}")
    return args


def _served_model(args: argparse.Namespace) -> ServedModel:
    """Return the server's model that was asked for, or its first. Raises `LaunchError` where it has no such."""
    key = args.api_key or _key_from_environment()
    with ChatClient(args.base_url or _default_url(), key, {}, args.cacert) as client:
        if client.base_url.startswith("unix:"):
            raise SettingsError(f"agents reach servers by http or https alone, got {client.base_url}")
        models = {str(entry["id"]): entry.get("max_model_len") for entry in client.models()}
        name = args.model or next(iter(models), None)
        if name is None:
            raise LaunchError(f"{client.base_url} has no model for this key")
        if name not in models:
            raise LaunchError(f"{client.base_url} has no model {name!r}; it has {', '.join(map(repr, models))}")
        length = models[name]
        context = length if isinstance(length, int) else None
        return ServedModel(client.base_url, name, context, key, args.cacert)


def _become(agent: Agent, launch: Launch, rest: Sequence[str]) -> NoReturn:
    program = shutil.which(agent.command)
    if program is None:
        raise LaunchError(f"{agent.title} is not installed: there is no {agent.command} in PATH\n{agent.installation}")
    kept = {name: value for name, value in os.environ.items() if name not in launch.removed}
    sys.stdout.flush()
    os.execve(program, [agent.command, *launch.arguments, *rest], {**kept, **launch.variables})  # noqa: S606


def _default_url() -> str:
    """Return where a server with the settings of this environment listens. Raises `SettingsError` for a Unix socket."""
    settings = load_settings()
    if settings.uds is not None:
        raise SettingsError(f"agents do not reach {env_name('uds')} {settings.uds}: give --base-url")
    return url_of(settings.host, settings.port, "http" if settings.ssl_certfile is None else "https")


def _key_from_environment() -> str | None:
    """Return the first key of the variable that the server reads too, where it may hold several."""
    return next(iter(parse_strings(os.environ.get(env_name("api_key"), ""))), None)


def _parser() -> Parser:
    parser = Parser("orcinus launch", "AGENT [OPTIONS] [-- ARGUMENTS]", _DESCRIPTION, _EPILOG)
    parser.add_argument("agent", metavar="AGENT", help=", ".join(AGENTS))
    parser.add_argument(
        "--base-url",
        metavar="URL",
        help=f"where the server is [default: {env_name('host')} and {env_name('port')}, else http://127.0.0.1:8000]",
    )
    parser.add_argument("--model", metavar="NAME", help="model to use [default: the first that the server has]")
    parser.add_argument("--api-key", metavar="KEY", help=f"key to send [{env_name('api_key')}]")
    parser.add_argument(
        "--cacert", type=Path, metavar="FILE", help="certificates to trust, where the server's is nobody else's"
    )
    parser.add_argument("--print", action="store_true", help="print what the agent is to be told, and start nothing")
    return parser
