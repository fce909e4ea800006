"""The environment of the client libraries, and how their scripts are run in it.

It is apart from ours because the clients pin older releases of packages that the tests need: `make clients` builds it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.server_process import ROOT

FOLDER = ".venv-clients"
CLIENTS_PYTHON = ROOT / FOLDER / "bin" / "python"
OUR_PYTHON = Path(sys.executable)

# Nothing is sent or fetched beyond the server under test.
_OFFLINE = {
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
}


def run_module(python: Path, home: Path, module: str, *args: str) -> Any:
    """The JSON in the last line that the module prints; `home` is all that it finds of a user's files."""
    assert python.is_file(), f"{FOLDER} is missing, run: make clients"
    command = [str(python), "-m", module, *args]
    environment = {"PATH": os.defpath, "HOME": str(home), "LLM_USER_PATH": str(home), **_OFFLINE}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
