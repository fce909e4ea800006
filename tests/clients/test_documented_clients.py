"""The programs that the README and docs/clients.md show, run as they stand against a real server."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.environment import CLIENTS_PYTHON
from tests.server_process import ROOT, ServerProcess

pytestmark = pytest.mark.slow  # in an environment of its own

SHOWN_ADDRESS = "http://127.0.0.1:8000"


def programs_in(page: str) -> list[tuple[str, str]]:
    """Return the client that each program of a page imports, and its text."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [(block.split()[1], block) for block in blocks if SHOWN_ADDRESS in block]


PROGRAMS = [(page, *program) for page in ("README.md", "docs/clients.md") for program in programs_in(page)]


def test_the_pages_show_the_clients_that_they_name() -> None:
    clients = {(page, client) for page, client, _ in PROGRAMS}
    assert ("README.md", "openai") in clients
    shown = {client for page, client in clients if page == "docs/clients.md"}
    assert shown == {"openai", "anthropic", "cohere", "langchain_openai", "litellm"}


@pytest.mark.parametrize(("page", "client", "program"), PROGRAMS, ids=[f"{page}-{name}" for page, name, _ in PROGRAMS])
def test_a_program_that_a_page_shows_works(
    page: str, client: str, program: str, server: ServerProcess, tmp_path: Path
) -> None:
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    done = subprocess.run(
        [str(CLIENTS_PYTHON), "-c", program.replace(SHOWN_ADDRESS, server.url)],
        env={"PATH": os.defpath, "HOME": str(tmp_path), **offline},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
