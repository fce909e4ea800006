"""How each coding agent is told of a server: variables of its environment, arguments, or settings, and no files.

Knows the agents' own names for things, and nothing of how they are started.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NO_KEY = "none"  # agents want a key, whether the server does or not
_PATIENCE_MS = 3_600_000  # a long prompt may take a while on a CPU
_MOST_OUTPUT = 32_000  # what Claude Code and opencode ask for in one answer, where they may
_OUTPUT_SHARE = 4  # of the context one answer may have a quarter
_KEY_VARIABLE = "ORCINUS_API_KEY"
_PROVIDER = "orcinus"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Names a server and one of its models. `context` is the context length, None where it is not known yet."""

    base_url: str
    name: str
    context: int | None = None
    api_key: str | None = None
    cacert: Path | None = None

    @property
    def max_output(self) -> int | None:
        return None if self.context is None else min(_MOST_OUTPUT, max(self.context // _OUTPUT_SHARE, 1))


@dataclass(frozen=True, slots=True)
class Launch:
    """Holds what an agent is started with: variables to set and to take away, and arguments; and that as a text."""

    variables: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    printed: str = ""


@dataclass(frozen=True, slots=True)
class Agent:
    """Describes an agent: its command, how it is installed, and what it is started with, given its environment."""

    command: str
    title: str
    installation: str
    launch: Callable[[ServedModel, Mapping[str, str]], Launch]


def _launch_claude(model: ServedModel, environment: Mapping[str, str]) -> Launch:
    kinds = ("OPUS", "SONNET", "HAIKU", "FABLE")
    variables = {
        "ANTHROPIC_BASE_URL": model.base_url,
        "ANTHROPIC_AUTH_TOKEN": model.api_key or _NO_KEY,
        "ANTHROPIC_MODEL": model.name,
        **{f"ANTHROPIC_DEFAULT_{kind}_MODEL": model.name for kind in kinds},
        "ANTHROPIC_SMALL_FAST_MODEL": model.name,  # older name of HAIKU's
        "CLAUDE_CODE_SUBAGENT_MODEL": model.name,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # a line that is another one in each conversation
        "API_TIMEOUT_MS": str(_PATIENCE_MS),
        **_if_known("CLAUDE_CODE_MAX_CONTEXT_TOKENS", model.context),
        **_if_known("CLAUDE_CODE_MAX_OUTPUT_TOKENS", model.max_output),
        **_if_known("NODE_EXTRA_CA_CERTS", model.cacert),
    }
    # A key of its own would be sent beside ours, and another cloud's would take the place of the URL.
    removed = ("ANTHROPIC_API_KEY", *(f"CLAUDE_CODE_USE_{cloud}" for cloud in ("BEDROCK", "VERTEX", "FOUNDRY")))
    return Launch(variables, removed, printed=f"{_exports(variables)}\nunset {' '.join(removed)}")


def _launch_codex(model: ServedModel, environment: Mapping[str, str]) -> Launch:
    provider = {
        "name": "Orcinus",
        "base_url": f"{model.base_url}/v1",
        "wire_api": "responses",
        "stream_idle_timeout_ms": _PATIENCE_MS,
        **({"env_key": _KEY_VARIABLE} if model.api_key else {}),
    }
    top: dict[str, Any] = {"model": model.name, "model_provider": _PROVIDER}
    if model.context is not None:
        top["model_context_window"] = model.context
    settings = {**top, **{f"model_providers.{_PROVIDER}.{name}": value for name, value in provider.items()}}
    arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={json.dumps(value)}")]
    variables = {**_if_known(_KEY_VARIABLE, model.api_key), **_if_known("CODEX_CA_CERTIFICATE", model.cacert)}
    lines = [
        "# ~/.codex/config.toml",
        *(f"{name} = {json.dumps(value)}" for name, value in top.items()),
        f"\n[model_providers.{_PROVIDER}]",
        *(f"{name} = {json.dumps(value)}" for name, value in provider.items()),
        *(["\n# and in the environment:"] if variables else []),
        *(f"# {line}" for line in _exports(variables).splitlines()),
    ]
    return Launch(variables, arguments=tuple(arguments), printed="\n".join(lines))


def _launch_opencode(model: ServedModel, environment: Mapping[str, str]) -> Launch:
    limits = {} if model.context is None else {"limit": {"context": model.context, "output": model.max_output}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Orcinus",
        "options": {"baseURL": f"{model.base_url}/v1", "apiKey": model.api_key or _NO_KEY, "timeout": _PATIENCE_MS},
        "models": {model.name: {"name": model.name, **limits}},
    }
    full_name = f"{_PROVIDER}/{model.name}"
    own = {"$schema": "https://opencode.ai/config.json", "model": full_name, "small_model": full_name}
    given = _read_object(environment.get("OPENCODE_CONFIG_CONTENT", ""))
    providers = given.get("provider")
    told = {**given, **own, "provider": {**(providers if isinstance(providers, dict) else {}), _PROVIDER: provider}}
    variables = {"OPENCODE_CONFIG_CONTENT": json.dumps(told), **_if_known("NODE_EXTRA_CA_CERTS", model.cacert)}
    return Launch(variables, printed=json.dumps({**own, "provider": {_PROVIDER: provider}}, indent=2))


def _if_known(name: str, value: object) -> dict[str, str]:
    return {} if value is None else {name: str(value)}


def _exports(variables: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def _read_object(text: str) -> dict[str, Any]:
    """Return a JSON object; of anything else an empty one."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


AGENTS: Mapping[str, Agent] = {
    agent.command: agent
    for agent in (
        Agent("claude", "Claude Code", "npm install -g @anthropic-ai/claude-code", _launch_claude),
        Agent("codex", "Codex", "npm install -g @openai/codex", _launch_codex),
        Agent("opencode", "opencode", "npm install -g opencode-ai", _launch_opencode),
    )
}
