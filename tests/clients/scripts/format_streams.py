"""Calls in every format, streamed to the official SDKs, whose own accumulators join what comes.

    python -m tests.clients.scripts.format_streams FILE

FILE has, as JSON, for each format the address of a server whose model calls tools in it, and the calls. Prints for each
what went wrong, as JSON; empty if nothing did.
"""

import json
import sys
from pathlib import Path
from typing import Any

from anthropic import Anthropic
from openai import OpenAI

from tests.clients.scripts.checks import outcome, refuse_network

QUESTION: Any = [{"role": "user", "content": "hi"}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
NAMES = ("get_weather", "get_time")

Calls = list[tuple[str, dict[str, Any]]]


def openai_calls(url: str) -> Calls:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    tools: Any = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in NAMES]
    deltas: dict[int, str] = {}
    with client.chat.completions.stream(model="fake-model", messages=QUESTION, tools=tools) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                deltas[event.index] = deltas.get(event.index, "") + event.arguments_delta
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls", choice
    calls = choice.message.tool_calls or []
    assert [deltas[i] for i in range(len(calls))] == [call.function.arguments for call in calls]
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def anthropic_calls(url: str) -> Calls:
    client = Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)
    tools: Any = [{"name": name, "input_schema": SCHEMA} for name in NAMES]
    with client.messages.stream(model="fake-model", messages=QUESTION, tools=tools, max_tokens=900) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use", message
    return [(block.name, dict(block.input)) for block in message.content if block.type == "tool_use"]


def check(format_of_calls: Any) -> None:
    expected = [(name, arguments) for name, arguments in format_of_calls["calls"]]
    assert openai_calls(format_of_calls["url"]) == expected
    assert anthropic_calls(format_of_calls["url"]) == expected


def main(file: str) -> None:
    formats = json.loads(Path(file).read_text())
    results = {name: outcome(check, format_of_calls) for name, format_of_calls in formats.items()}
    print("\n" + json.dumps(results), flush=True)


if __name__ == "__main__":
    sys.addaudithook(refuse_network)
    main(*sys.argv[1:])
