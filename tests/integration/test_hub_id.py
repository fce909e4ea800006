"""A model named by its hub id, from the hub's cache on this disk: what a download leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orcinus.config.settings import demo_model_path


@pytest.mark.slow
def test_a_hub_id_is_loaded_from_the_hubs_cache(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--acme--demo"
    for folder in ("refs", "snapshots"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    (repository / "snapshots" / "0123abcd").symlink_to(demo_model_path())
    body = {"model": "acme/demo", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "orcinus.server.cli",
            "generate",
            str(tmp_path / "prompts.jsonl"),
            "-o",
            "-",
            "--model",
            "acme/demo",
        ],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["response"]["status_code"] == 200
    assert answer["response"]["body"]["usage"]["completion_tokens"] == 4
