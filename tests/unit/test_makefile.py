"""Which torch `make` installs: the CPU build where there is no NVIDIA GPU, unless told otherwise."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def installs(tmp_path: Path, *arguments: str, found: str = "") -> list[str]:
    """What `make serve` would install by, in an empty environment, where the script finds this index."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho {found}\n")
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX_URL"}
    command = ["make", "--dry-run", "serve", f"PYTHON={python}", f"VENV={tmp_path}/venv", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return [line for line in done.stdout.splitlines() if "pip install" in line]


def test_an_index_that_is_found_is_added_once(tmp_path: Path) -> None:
    [line] = installs(tmp_path, found="https://cpu.example/whl")
    assert "--extra-index-url https://cpu.example/whl --editable" in line
    assert (tmp_path / "asked").read_text() == "asked\n"


@pytest.mark.parametrize(
    ("arguments", "added"), [([], None), (["TORCH_INDEX_URL="], None), (["TORCH_INDEX_URL=http://x"], "http://x")]
)
def test_what_is_given_wins_and_nothing_is_added_where_nothing_is_found(
    arguments: list[str], added: str | None, tmp_path: Path
) -> None:
    [line] = installs(tmp_path, *arguments, found="https://cpu.example/whl" if arguments else "")
    assert ("--extra-index-url" in line) is (added is not None)
    assert added is None or f"--extra-index-url {added} " in line
    assert (tmp_path / "asked").exists() is (not arguments)


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_index", ROOT / ".ci" / "torch_index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("platform", "has_gpu", "reachable", "printed", "told"),
    [
        ("linux", False, True, "https://download.pytorch.org/whl/cpu\n", "torch's CPU build is taken"),
        ("linux", False, False, "", "cannot be reached"),
        ("linux", True, True, "", ""),
        ("darwin", False, True, "", ""),
    ],
)
def test_the_index_of_the_cpu_build_is_for_linux_without_a_gpu(
    platform: str,
    has_gpu: bool,
    reachable: bool,
    printed: str,
    told: str,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script.sys, "platform", platform)
    monkeypatch.setattr(script, "has_nvidia_gpu", lambda: has_gpu)
    monkeypatch.setattr(script, "is_reachable", lambda url: reachable)
    script.main()
    out, err = capsys.readouterr()
    assert out == printed
    assert told in err
    assert bool(err) is bool(told)


def test_an_index_that_does_not_answer_is_not_reachable(script: ModuleType) -> None:
    assert not script.is_reachable("http://127.0.0.1:1/torch/")
