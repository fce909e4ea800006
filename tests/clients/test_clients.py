"""Client libraries of others against a real server: each check of each script in `scripts/` is a test."""

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.clients.environment import CLIENTS_PYTHON, OUR_PYTHON, run_module
from tests.server_process import ServerProcess

pytestmark = pytest.mark.slow  # in an environment of its own

SCRIPTS = Path(__file__).parent / "scripts"
PACKAGE = "tests.clients.scripts"
CLIENTS = (
    "anthropic_sdk",
    "cohere_sdk",
    "instructor_client",
    "langchain_client",
    "litellm_client",
    "llm_cli",
    "openai_agents",
    "openai_sdk",
    "pydantic_ai_client",
)

Outcomes = Callable[[Path, str], dict[str, str]]


def checks_in(script: str) -> list[str]:
    """Their names, without importing the client."""
    tree = ast.parse((SCRIPTS / f"{script}.py").read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]


@pytest.fixture(scope="module")
def outcomes(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Return what a script's checks came to, run once in one process."""

    @cache
    def run(python: Path, script: str) -> dict[str, str]:
        home = tmp_path_factory.mktemp(script)
        found: dict[str, str] = run_module(python, home, f"{PACKAGE}.checks", f"{PACKAGE}.{script}", server.url)
        return found

    return run


@pytest.mark.parametrize(("script", "check"), [(script, check) for script in CLIENTS for check in checks_in(script)])
def test_client(outcomes: Outcomes, script: str, check: str) -> None:
    problem = outcomes(CLIENTS_PYTHON, script)[check]
    assert not problem, problem


@pytest.mark.parametrize("check", checks_in("openai_sdk"))
def test_the_newest_openai_sdk(outcomes: Outcomes, check: str) -> None:
    problem = outcomes(OUR_PYTHON, "openai_sdk")[check]
    assert not problem, problem
