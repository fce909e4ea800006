"""A server whose model's tokenizer says how its answers are read, from its start to calls over HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from orcinus.config.settings import demo_model_path
from tests.server_process import ServerProcess, StartServer
from tests.unit.server.reading import response_templates

pytestmark = pytest.mark.slow

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": ["1", "2"]}},
            "required": ["city", "days"],
        },
    },
}


def demo_with(directory: Path, response_template: Any) -> Path:
    """The demo model, whose tokenizer has a response template."""
    model = directory / "demo"
    model.mkdir()
    for file in demo_model_path().iterdir():
        if file.name != "tokenizer_config.json":
            (model / file.name).symlink_to(file)
    settings = json.loads((demo_model_path() / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "response_template": response_template}))
    return model


@pytest.fixture
def served(tmp_path: Path, start_server: StartServer) -> Iterator[tuple[ServerProcess, OpenAI]]:
    server = start_server("--model", str(demo_with(tmp_path, response_templates.SMOLLM_3)))
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield server, client


def test_calls_and_answers_are_read_by_the_template(served: tuple[ServerProcess, OpenAI]) -> None:
    server, client = served
    assert "tools: response template; reasoning: response template" in server.log
    asked: Any = {"model": "demo", "messages": [{"role": "user", "content": "Weather in Paris?"}], "temperature": 0}
    calling = {**asked, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    [choice] = client.chat.completions.create(**calling).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Paris", "Rome")

    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**calling, stream=True)]
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    assert "".join(part.function.arguments or "" for part in parts) == call.function.arguments
    assert len(parts) > 2
    assert not any(delta.content for delta in deltas)

    whole = client.chat.completions.create(**asked).choices[0].message.content
    stream = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole
    assert whole


def test_broken_template_is_told_and_the_server_serves(tmp_path: Path, start_server: StartServer) -> None:
    broken = {**response_templates.SMOLLM_3, "start_anchor_pattern": "("}
    server = start_server("--model", str(demo_with(tmp_path, broken)))
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200
    assert "the tokenizer's response_template is not used: response_template: cannot specify both" in server.log
    assert "tools: hermes; reasoning: none" in server.log
