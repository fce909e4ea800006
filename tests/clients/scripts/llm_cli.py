"""The `llm` command, as somebody types it."""

import json
import os
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from llm.cli import cli

QUESTION = "What is the capital of France?"
MODEL = """
- model_id: demo
  model_name: orcinus-demo
  api_base: {url}/v1
  supports_schema: true
"""


def llm(url: str, *words: str) -> str:
    """Return what the command prints."""
    models = Path(os.environ["LLM_USER_PATH"]) / "extra-openai-models.yaml"
    models.write_text(MODEL.format(url=url))
    answer: Any = CliRunner().invoke(cli, [*words], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return str(answer.output)


def check_a_streamed_prompt(url: str) -> None:
    assert "Paris" in llm(url, "prompt", "-m", "demo", "-o", "temperature", "0", QUESTION)


def check_a_prompt_without_streaming(url: str) -> None:
    streamed = llm(url, "prompt", "-m", "demo", "-o", "temperature", "0", QUESTION)
    assert llm(url, "prompt", "-m", "demo", "-o", "temperature", "0", "--no-stream", QUESTION) == streamed


def check_a_system_prompt(url: str) -> None:
    assert llm(url, "prompt", "-m", "demo", "-s", "You are a friendly assistant.", "Hello!").strip()


def check_a_schema(url: str) -> None:
    question = "Describe France in JSON with the keys country and capital."
    answer = llm(url, "prompt", "-m", "demo", "-o", "temperature", "0", "--schema", "country, capital", question)
    assert json.loads(answer) == {"country": "France", "capital": "Paris"}
