"""LiteLLM, with its `openai/` provider."""

import asyncio
import json
from typing import Any

import litellm

from tests.clients.scripts.openai_sdk import QUESTION, WEATHER, WEATHER_QUESTION

MODEL = "openai/orcinus-demo"


def settings(url: str, **body: Any) -> dict[str, Any]:
    return {"model": MODEL, "api_base": f"{url}/v1", "api_key": "none", "max_retries": 0, **body}


def check_completion(url: str) -> None:
    answer = litellm.completion(**settings(url, messages=QUESTION, temperature=0))
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def check_acompletion(url: str) -> None:
    answer = asyncio.run(litellm.acompletion(**settings(url, messages=QUESTION, temperature=0)))
    assert "Paris" in answer.choices[0].message.content


def check_stream(url: str) -> None:
    chunks = list(litellm.completion(**settings(url, messages=QUESTION, temperature=0, stream=True)))
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def check_text_completion(url: str) -> None:
    answer = litellm.text_completion(
        **settings(url, model="text-completion-openai/orcinus-demo", prompt="Once", max_tokens=4)
    )
    assert answer.choices[0].text


def check_a_round_trip_with_a_tool(url: str) -> None:
    body = settings(url, temperature=0, tools=[WEATHER])
    asked = litellm.completion(**body, messages=WEATHER_QUESTION).choices[0]
    assert asked.finish_reason == "tool_calls"
    [call] = asked.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "condition": "sunny"}'}
    answer = litellm.completion(**body, messages=[*WEATHER_QUESTION, asked.message.model_dump(), result])
    assert "sunny" in answer.choices[0].message.content


def check_embedding(url: str) -> None:
    answer = litellm.embedding(**settings(url, input=["a cat", "seven times nine"]))
    first, second = (entry["embedding"] for entry in answer.data)
    assert len(first) == len(second) > 1


def check_rerank(url: str) -> None:
    """By the provider for vLLM's API, and by the one for Cohere's."""
    documents = ["a cat", "seven times nine"]
    for model, base in (("hosted_vllm/orcinus-demo", url), ("cohere/orcinus-demo", f"{url}/v2/rerank")):
        answer = litellm.rerank(
            model=model, api_base=base, api_key="none", query="an animal", documents=documents, return_documents=True
        )
        assert {result["index"] for result in answer.results} == {0, 1}, model
        assert answer.meta["tokens"]["input_tokens"] > 0, model


def check_errors(url: str) -> None:
    try:
        litellm.completion(**settings(url, messages=QUESTION, max_tokens=100_000))
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("no ContextWindowExceededError")
