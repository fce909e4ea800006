"""The names that a user's own program imports, with modules of its own beside it that are called like our folders."""

import subprocess
import sys
from pathlib import Path

import pytest

import orcinus

PROGRAM = """
import config, engine, server  # the user's own

from orcinus import LLM, SamplingParams

llm = LLM()
(answer,) = llm.generate(["Hello"], SamplingParams(max_tokens=3, ignore_eos=True))
print(len(answer.outputs[0].token_ids), config.mine, engine.mine, server.mine)
"""


def test_a_program_with_modules_called_like_our_folders_runs(tmp_path: Path) -> None:
    for name in ("config", "engine", "server"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "True", "True", "True"]


def test_importing_orcinus_costs_no_torch() -> None:
    script = "import sys, orcinus; assert not {'torch', 'transformers', 'fastapi'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'orcinus' has no attribute 'LLMM'"):
        getattr(orcinus, "LLMM")  # noqa: B009
