"""The OpenAI Agents SDK: its loop calls a tool, hands the result back and ends with an answer."""

import asyncio
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

MODEL = "orcinus-demo"
QUESTION = "What is the weather in Paris?"


async def run(url: str, kind: Any, *, is_streamed: bool) -> None:
    """Run the loop to its end, and check what it asked of the tool and what it says."""
    asked: list[str] = []

    def get_weather(city: str) -> str:
        """Get the weather in a city"""
        asked.append(city)
        return '{"temperature": 21, "condition": "sunny"}'

    set_tracing_disabled(True)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        agent = Agent(
            name="weather",
            tools=[function_tool(get_weather)],
            model=kind(MODEL, client),
            model_settings=ModelSettings(temperature=0, include_usage=True),
        )
        if is_streamed:
            done: Any = Runner.run_streamed(agent, QUESTION)
            async for _ in done.stream_events():
                pass
        else:
            done = await Runner.run(agent, QUESTION)
    assert asked == ["Paris"]
    assert "sunny" in done.final_output
    usage = done.context_wrapper.usage
    assert (usage.requests, usage.total_tokens) == (2, usage.input_tokens + usage.output_tokens)
    assert usage.output_tokens > 0


def check_a_loop_over_chats(url: str) -> None:
    asyncio.run(run(url, OpenAIChatCompletionsModel, is_streamed=False))


def check_a_streamed_loop_over_chats(url: str) -> None:
    asyncio.run(run(url, OpenAIChatCompletionsModel, is_streamed=True))


def check_a_loop_over_responses(url: str) -> None:
    asyncio.run(run(url, OpenAIResponsesModel, is_streamed=False))


def check_a_streamed_loop_over_responses(url: str) -> None:
    asyncio.run(run(url, OpenAIResponsesModel, is_streamed=True))
