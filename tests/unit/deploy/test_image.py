"""The image's recipe: it agrees with the program, and its health check follows readiness.

No engine of containers is needed. `deploy/check_image.py` builds the image from the recipe and runs it.
"""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orcinus.config.settings import Settings
from orcinus.server.process.health_check import addresses
from tests.unit.deploy.files import ROOT, environment_of_image, image_user, instructions, last

HADOLINT = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say_and_would_say_something(tmp_path: Path) -> None:
    assert hadolint(ROOT / "Dockerfile") == ""
    wrong = tmp_path / "Dockerfile"
    wrong.write_text((ROOT / "Dockerfile").read_text().replace('ENTRYPOINT ["orcinus"]', "ENTRYPOINT orcinus"))
    assert "DL3025" in hadolint(wrong)


def hadolint(path: Path) -> str:
    assert HADOLINT is not None
    command = [HADOLINT, "--no-color", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def test_server_is_the_first_process_of_the_image_and_not_root() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["orcinus"]
    assert json.loads(last("CMD")) == ["serve"]
    assert all(part.isdigit() and int(part) > 0 for part in image_user())


def test_any_user_of_group_0_may_write_where_the_server_writes() -> None:
    [made] = [argument for name, argument in instructions() if name == "RUN" and "install --directory" in argument]
    [command] = [part for part in made.split("&&") if "install --directory" in part]
    words = command.split()
    assert {"--group=0", "--mode=0775"} <= set(words)
    environment = environment_of_image()
    assert {environment["HF_HOME"], environment["HOME"], last("WORKDIR")} <= set(words)
    assert Path(environment["ORCINUS_PACKED_WEIGHTS_DIR"]).parent == Path(environment["HF_HOME"])


def test_image_listens_where_its_port_is_exposed() -> None:
    environment = environment_of_image()
    assert environment["ORCINUS_HOST"] == "0.0.0.0"
    assert environment["ORCINUS_PORT"] == last("EXPOSE") == str(Settings().port)


def test_image_copies_all_that_the_wheel_is_made_of_and_the_build_context_has_it() -> None:
    copied = {
        source
        for name, argument in instructions()
        if name == "COPY" and not argument.startswith("--from")
        for source in argument.split()[:-1]
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    linked = {path.name for path in (ROOT / "orcinus").iterdir() if path.is_symlink()}
    assert copied == packages | linked | {"pyproject.toml", "setup.py", "README.md", "LICENSE"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed


def test_dependency_layer_lists_the_dependencies_of_the_project() -> None:
    (command,) = [a for name, a in instructions() if name == "RUN" and "tomllib" in a]
    script = re.fullmatch(r'python -c "(.*)"\s*> requirements\.txt', command)
    assert script is not None
    done = subprocess.run(
        [sys.executable, "-c", script[1]], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert done.stdout.splitlines() == project["project"]["dependencies"]


@contextmanager
def answering(status: int, asked: list[str]) -> Iterator[int]:
    """A server that answers every GET with `status`; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_health_check_of_the_image_follows_readiness(status: int, exit_code: int) -> None:
    command = json.loads(last("HEALTHCHECK").split(" CMD ")[1])
    assert command[0] == "python"
    asked: list[str] = []
    with answering(status, asked) as port:
        environment = {**os.environ, "ORCINUS_PORT": str(port)}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, timeout=60, check=False)
    assert (done.returncode, asked) == (exit_code, ["/ready"])


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        (None, None, [("127.0.0.1", 8000)]),
        ("0.0.0.0", "9000", [("127.0.0.1", 9000)]),
        ("0.0.0.0", "tcp://10.0.0.1:8000", [("127.0.0.1", Settings().port)]),
        ("0.0.0.0", "", [("127.0.0.1", 8000)]),
        ("::", "8000", [("::1", 8000), ("127.0.0.1", 8000)]),
        ("[::1]", "8000", [("::1", 8000)]),
        ("10.1.2.3", "8000", [("10.1.2.3", 8000)]),
    ],
)
def test_health_check_asks_where_the_server_listens(
    host: str | None, port: str | None, expected: list[tuple[str, int]]
) -> None:
    given = {"ORCINUS_HOST": host, "ORCINUS_PORT": port}
    assert addresses({name: value for name, value in given.items() if value is not None}) == expected


def test_health_check_of_a_server_on_both_families_needs_one_of_them() -> None:
    command = json.loads(last("HEALTHCHECK").split(" CMD ")[1])
    asked: list[str] = []
    with answering(200, asked) as port:  # on IPv4 alone
        environment = {**os.environ, "ORCINUS_PORT": str(port), "ORCINUS_HOST": "::"}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, timeout=60, check=False)
    assert (done.returncode, asked) == (0, ["/ready"])


def test_health_check_fails_where_nothing_listens() -> None:
    with answering(200, []) as port:
        pass
    command = json.loads(last("HEALTHCHECK").split(" CMD ")[1])
    environment = {**os.environ, "ORCINUS_PORT": str(port)}
    done = subprocess.run([sys.executable, *command[1:]], env=environment, timeout=60, check=False, capture_output=True)
    assert done.returncode == 1


# --- layers ---------------------------------------------------------------------------------------------


def test_dependencies_and_program_are_layers_of_their_own_and_the_revision_comes_last() -> None:
    copies = [argument.split() for name, argument in instructions() if name == "COPY" and "--from" in argument]
    assert copies == [
        ["--from=dependencies", "/opt/orcinus", "/opt/orcinus"],
        ["--from=wheel", "/install", "/opt/orcinus"],
    ]
    names = [name for name, _ in instructions()]
    assert names[-3:] == ["ARG", "ARG", "LABEL"]


def test_image_says_the_version_that_the_project_has() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"VERSION={version}" in [argument for name, argument in instructions() if name == "ARG"]


def test_stage_of_the_dependencies_sees_no_source() -> None:
    stage = ""
    seen = []
    for name, argument in instructions():
        stage = argument.split(" AS ")[1] if name == "FROM" else stage
        seen += [argument.split()[0]] if name == "COPY" and stage == "dependencies" else []
    assert seen == ["pyproject.toml"]
