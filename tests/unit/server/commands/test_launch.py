"""`orcinus launch` with agents that write down what they were started with, and a server that has two models."""

import json
import os
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orcinus.server.cli import main
from orcinus.server.commands.agents import AGENTS, ServedModel
from tests.server_process import ROOT
from tests.unit.server.commands.test_chat import Captured, Stub

STAND_IN = f"""#!{sys.executable}
import json, os, sys
print(json.dumps({{"name": sys.argv[0], "arguments": sys.argv[1:], "variables": dict(os.environ)}}))
"""
OUTSIDE = {
    "ANTHROPIC_API_KEY": "sk-other",
    "CLAUDE_CODE_USE_BEDROCK": "1",
    "OPENCODE_CONFIG_CONTENT": '{"theme": "dark", "model": "other/x", "provider": {"other": {"npm": "x"}}}',
}


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    server.models = {"data": [{"id": "big", "max_model_len": 40_000}, {"id": "it's small", "max_model_len": None}]}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory with a stand-in for each agent."""
    for name in AGENTS:
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def launched(installed: Path, *words: str, **variables: str) -> dict[str, Any]:
    """What an agent was started with."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCINUS_")}
    environment = {**kept, **OUTSIDE, "PATH": f"{installed}:{os.environ['PATH']}", **variables}
    command = [sys.executable, "-m", "orcinus.server.cli", "launch", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_claude_code_is_told_by_its_environment(stub: Stub, installed: Path) -> None:
    told = launched(installed, "claude", "--base-url", stub.url + "/v1/", "--", "-p", "--model", "hi there", "--")
    assert told["arguments"] == ["-p", "--model", "hi there", "--"]
    variables = told["variables"]
    assert variables["ANTHROPIC_BASE_URL"] == stub.url
    models = {name for name in variables if name.startswith("ANTHROPIC_") and "MODEL" in name}
    assert {"ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL", "ANTHROPIC_SMALL_FAST_MODEL"} < models
    assert {variables[name] for name in models} == {"big"}
    assert (variables["ANTHROPIC_AUTH_TOKEN"], variables["CLAUDE_CODE_ATTRIBUTION_HEADER"]) == ("none", "0")
    assert variables["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "40000"
    assert variables["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "10000"
    assert not {"ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK"} & variables.keys()
    assert variables["HOME"] == os.environ["HOME"]


def test_codex_is_told_by_arguments_before_the_users(stub: Stub, installed: Path) -> None:
    told = launched(installed, "codex", "--base-url", stub.url, "--api-key", "k", "--", "exec", "do it")
    *settings, command, task = told["arguments"]
    assert (command, task) == ("exec", "do it")
    assert settings[::2] == ["-c"] * (len(settings) // 2)
    read = tomllib.loads("\n".join(settings[1::2]))
    assert (read["model"], read["model_provider"], read["model_context_window"]) == ("big", "orcinus", 40_000)
    provider = read["model_providers"]["orcinus"]
    assert (provider["base_url"], provider["wire_api"]) == (f"{stub.url}/v1", "responses")
    assert told["variables"][provider["env_key"]] == "k"


def test_opencode_is_told_by_a_variable_that_keeps_what_was_in_it(stub: Stub, installed: Path) -> None:
    told = launched(installed, "opencode", "--base-url", stub.url, "--model", "it's small")
    assert told["arguments"] == []
    read = json.loads(told["variables"]["OPENCODE_CONFIG_CONTENT"])
    assert (read["model"], read["theme"]) == ("orcinus/it's small", "dark")
    assert read["provider"]["other"] == {"npm": "x"}
    provider = read["provider"]["orcinus"]
    assert provider["npm"] == "@ai-sdk/openai-compatible"
    assert (provider["options"]["baseURL"], provider["options"]["apiKey"]) == (f"{stub.url}/v1", "none")
    assert provider["models"] == {"it's small": {"name": "it's small"}}, "the context is not known yet"


def test_the_server_and_the_key_are_those_of_the_settings(stub: Stub, installed: Path) -> None:
    settings = {"ORCINUS_PORT": str(stub.server_port), "ORCINUS_API_KEY": "one,two"}
    variables = launched(installed, "claude", **settings)["variables"]
    assert (variables["ANTHROPIC_BASE_URL"], variables["ANTHROPIC_AUTH_TOKEN"]) == (stub.url, "one")


# --- what is printed ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("ORCINUS_")]:
        monkeypatch.delenv(name)


def printed(capsys: Captured, *words: str) -> str:
    assert main(["launch", *words, "--print"]) == 0
    return capsys.readouterr().out


def test_what_is_printed_for_claude_code_is_for_a_shell(stub: Stub, installed: Path, capsys: Captured) -> None:
    lines = printed(capsys, "claude", "--base-url", stub.url, "--model", "it's small").splitlines()
    assert "export ANTHROPIC_MODEL=" + shlex.quote("it's small") in lines
    assert lines[-1].startswith("unset ANTHROPIC_API_KEY")
    shell = subprocess.run(
        ["sh", "-c", "\n".join([*lines, f"exec {installed}/claude"])],
        env={**os.environ, **OUTSIDE},
        capture_output=True,
        text=True,
        check=True,
    )
    variables = json.loads(shell.stdout)["variables"]
    told = AGENTS["claude"].launch(ServedModel(stub.url, "it's small"), {})
    assert told.variables.items() <= variables.items()
    assert not {*told.removed} & variables.keys()


def test_what_is_printed_for_the_others_is_for_their_settings(stub: Stub, capsys: Captured) -> None:
    read = tomllib.loads(printed(capsys, "codex", "--base-url", stub.url))
    assert read["model_providers"]["orcinus"]["base_url"] == f"{stub.url}/v1"
    assert "env_key" not in read["model_providers"]["orcinus"]
    with_key = printed(capsys, "codex", "--base-url", stub.url, "--api-key", "a key")
    assert tomllib.loads(with_key)["model_providers"]["orcinus"]["env_key"] == "ORCINUS_API_KEY"
    assert "export ORCINUS_API_KEY='a key'" in with_key
    read = json.loads(printed(capsys, "opencode", "--base-url", stub.url, "--api-key", "k"))
    assert read["provider"]["orcinus"]["options"]["apiKey"] == "k"
    assert read["provider"]["orcinus"]["models"]["big"]["limit"] == {"context": 40_000, "output": 10_000}


@pytest.mark.parametrize(
    ("agent", "variable"),
    [("claude", "NODE_EXTRA_CA_CERTS"), ("codex", "CODEX_CA_CERTIFICATE"), ("opencode", "NODE_EXTRA_CA_CERTS")],
)
def test_certificates_are_handed_on(agent: str, variable: str) -> None:
    model = ServedModel("https://there", "m", cacert=Path("/ca.pem"))
    assert AGENTS[agent].launch(model, {}).variables[variable] == "/ca.pem"


@pytest.mark.parametrize("content", ["", "no JSON", "[1]", '{"provider": 1}'])
def test_a_variable_that_is_no_object_is_replaced(content: str) -> None:
    told = AGENTS["opencode"].launch(ServedModel("http://there", "m"), {"OPENCODE_CONFIG_CONTENT": content})
    assert [*json.loads(told.variables["OPENCODE_CONFIG_CONTENT"])["provider"]] == ["orcinus"]


# --- errors ---------------------------------------------------------------------------------------------


def refused(capsys: Captured, *words: str, exit_code: int = 1) -> str:
    assert main(["launch", *words]) == exit_code
    return capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named(capsys: Captured) -> None:
    told = refused(capsys, "claude", "--base-url", "http://127.0.0.1:9")
    assert told == "orcinus launch: no server answers at http://127.0.0.1:9; start one with: orcinus serve\n"


def test_an_agent_that_is_not_installed_is_named_with_how_to_install_it(
    stub: Stub, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for agent in AGENTS.values():
        told = refused(capsys, agent.command, "--base-url", stub.url)
        assert f"{agent.title} is not installed" in told
        assert agent.installation in told


def test_models_that_are_not_there_are_refused(stub: Stub, capsys: Captured) -> None:
    told = refused(capsys, "claude", "--base-url", stub.url, "--model", "huge")
    assert f"{stub.url} has no model 'huge'; it has 'big', \"it's small\"" in told
    stub.models = {"data": []}
    assert "has no model for this key" in refused(capsys, "claude", "--base-url", stub.url)


def test_a_server_that_wants_a_key_says_so(stub: Stub, capsys: Captured) -> None:
    stub.status = 401
    stub.models = {"error": {"message": "a key is needed"}}
    assert "a key is needed (HTTP 401)" in refused(capsys, "codex", "--base-url", stub.url)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vim"], "there is no agent 'vim': give one of claude, codex, opencode"),
        (["claude", "-p", "hi"], "what is meant for the agent comes after --"),
        ([], "AGENT"),
        (["claude", "--base-url", "ftp://there"], "is no URL of a server"),
    ],
)
def test_wrong_calls_are_explained(words: list[str], told: str, capsys: Captured) -> None:
    assert told in refused(capsys, *words, exit_code=2)


def test_agents_do_not_reach_a_socket(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "by http or https alone" in refused(capsys, "claude", "--base-url", "unix:/tmp/x.sock", exit_code=2)
    monkeypatch.setenv("ORCINUS_UDS", str(tmp_path / "x.sock"))
    assert "give --base-url" in refused(capsys, "claude", exit_code=2)
