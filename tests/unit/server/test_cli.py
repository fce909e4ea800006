"""The `orcinus` command: help, refusals, exit codes."""

import subprocess
import sys

import pytest

from orcinus.server.cli import COMMANDS, main


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert all(f"  {command}" in text for command in COMMANDS)
    assert "ORCINUS_" in text


def test_python_m_orcinus_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "orcinus", "srve"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "orcinus: unknown command: srve; did you mean serve?" in done.stderr


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("orcinus ")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_a_help_text(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        exit_code = main([command, "--help"])
    except SystemExit as exited:
        exit_code = int(exited.code or 0)
    assert exit_code == 0
    assert f"orcinus {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["srve"], "orcinus: unknown command: srve; did you mean serve?"),
        (["frobnicate"], "orcinus: unknown command: frobnicate; there are serve, chat, launch, generate, usage, bench"),
        (["--frobnicate"], "orcinus: unknown flag: --frobnicate; flags follow a command"),
        (["serve", "--prot", "1"], "orcinus serve: unknown flag: --prot; did you mean --port"),
        (["serve", "--port", "http"], "orcinus serve: --port: must be a whole number from 0 to 65535, got 'http'"),
        (["generate", "/no/file"], "orcinus generate: there is no file /no/file"),
        (["generate"], "orcinus generate: the following arguments are required: FILE"),
        (["bench", "speed"], "orcinus bench: unknown measurement: speed; there is strategies"),
        (["bench", "strategies", "--requests", "0"], "--requests and --rounds must be at least 1"),
        (["bench", "strategies", "--prompt-min", "9", "--prompt-max", "8"], "no minimum above its maximum"),
        (["bench", "strategies", "--strategies", "static,fast"], "'static,fast' is no list of continuous"),
    ],
)
def test_a_wrong_call_is_refused_in_words_with_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ORCINUS_PROT", "80")
    assert main(["serve"]) == 2
    assert "unknown environment variable: ORCINUS_PROT; did you mean ORCINUS_PORT" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from orcinus.server.cli import main; main(['--help']);"
        "print(sorted({'torch', 'transformers', 'fastapi', 'pydantic', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_settings_are_parsed_without_torch_and_without_fastapi() -> None:
    code = (
        "import sys; from orcinus.server.cli import main; main(['serve', '--port', 'x']);"
        "print(sorted({'torch', 'transformers', 'fastapi', 'starlette', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
