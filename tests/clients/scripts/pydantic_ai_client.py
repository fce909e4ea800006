"""Pydantic AI over chats and responses: tools in its loop, and output of a type.

Its models for the Messages API do not fit the release of Anthropic's SDK that is tested here.
"""

import asyncio
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

MODEL = "orcinus-demo"
QUESTION = "What is the weather in Paris?"


class Country(BaseModel):
    country: str
    capital: str


def chats(url: str) -> Any:
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


def responses(url: str) -> Any:
    return OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


async def ask_for_the_weather(model: Any, *, is_streamed: bool) -> None:
    asked: list[str] = []

    async def get_weather(city: str) -> str:
        """Get the weather in a city"""
        asked.append(city)
        return '{"temperature": 21, "condition": "sunny"}'

    agent = Agent(model, tools=[get_weather], model_settings={"temperature": 0})
    if is_streamed:
        async with agent.run_stream(QUESTION) as stream:
            output = await stream.get_output()
    else:
        output = (await agent.run(QUESTION)).output
    assert asked == ["Paris"]
    assert "sunny" in output


def check_a_loop_over_chats(url: str) -> None:
    asyncio.run(ask_for_the_weather(chats(url), is_streamed=False))


def check_a_streamed_loop_over_chats(url: str) -> None:
    asyncio.run(ask_for_the_weather(chats(url), is_streamed=True))


def check_a_loop_over_responses(url: str) -> None:
    asyncio.run(ask_for_the_weather(responses(url), is_streamed=False))


def check_a_streamed_loop_over_responses(url: str) -> None:
    asyncio.run(ask_for_the_weather(responses(url), is_streamed=True))


def check_output_of_a_type_by_a_schema(url: str) -> None:
    agent: Any = Agent(chats(url), output_type=NativeOutput(Country), model_settings={"temperature": 0})
    assert isinstance(asyncio.run(agent.run("Describe France in JSON.")).output, Country)


def check_output_of_a_type_by_a_tool_that_has_to_be_called(url: str) -> None:
    for model in (chats(url), responses(url)):
        agent: Any = Agent(model, output_type=Country, model_settings={"temperature": 0})
        assert isinstance(asyncio.run(agent.run("Describe France in JSON.")).output, Country)
