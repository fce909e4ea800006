"""The programs of examples/ and the README's own, run as a user runs them: against a real server, or alone."""

import os
import re
import subprocess
import sys

import pytest

from tests.server_process import ROOT, ServerProcess

EXAMPLES = ROOT / "examples"
# A pattern that the whole output must match.
OUTPUTS = {
    "stream_chat.py": r"The capital of France is Paris\.\n\[\d+ tokens read, \d+ written\]\n",
    "tools.py": r"get_weather\(\{\"city\": ?\"Paris\"\}\) -> \{.*'sunny'\}\n.*sunny.*\n",
    "structured_output.py": r"The capital of France is Paris\.\n",
    "embeddings.py": r" 1\.00 .*\n .* 1\.00 .*\n .* 1\.00 +Seven times nine\.\n",
}


def run(name: str, *arguments: str, **environment: str) -> str:
    """Return what an example prints. It must exit with 0; a warning is an error."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORCINUS_", "OPENAI_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here_and_listed() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {*OUTPUTS, "offline_batch.py"}
    assert names == set(re.findall(r"^\| \[(\w+\.py)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_example_prints_what_it_promises(name: str, server: ServerProcess) -> None:
    assert re.fullmatch(OUTPUTS[name], run(name, "--base-url", f"{server.url}/v1"))


def test_the_address_may_come_from_the_environment(server: ServerProcess) -> None:
    assert "Paris" in run("stream_chat.py", OPENAI_BASE_URL=f"{server.url}/v1")


@pytest.mark.slow
def test_a_batch_runs_without_a_server_and_a_stream_is_left_early() -> None:
    first, _, third, *streamed, left = run("offline_batch.py").splitlines()
    assert "Paris" in first
    assert third.endswith("(stop)")
    assert "".join(streamed)
    assert re.fullmatch(r"\[left after 3\d tokens\]", left)


def test_the_readmes_program_without_a_server_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    [program] = [block for block in blocks if "from orcinus import" in block]
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") >= 2
