"""LangChain's classes for OpenAI's API."""

from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

QUESTION = "What is the capital of France?"


class get_weather(BaseModel):  # noqa: N801  (the class's name is the tool's)
    """Get the weather in a city"""

    city: str


class Country(BaseModel):
    country: str = Field(description="Name of the country")
    capital: str = Field(description="Name of its capital")


def model_of(url: str, **settings: Any) -> Any:
    return ChatOpenAI(
        model="orcinus-demo", base_url=f"{url}/v1", api_key="none", temperature=0, max_retries=0, **settings
    )


def check_invoke(url: str) -> None:
    answer = model_of(url).invoke(QUESTION)
    assert "Paris" in answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


def check_stream(url: str) -> None:
    model = model_of(url, stream_usage=True)
    chunks = list(model.stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == model.invoke(QUESTION).content
    assert any(chunk.usage_metadata for chunk in chunks)


def check_batch(url: str) -> None:
    questions = [f"What is the capital of {country}?" for country in ("France", "Italy", "Spain")]
    answers = model_of(url).batch(questions)
    for answer, capital in zip(answers, ("Paris", "Rome", "Madrid"), strict=True):
        assert capital in answer.content


def check_a_round_trip_with_a_tool(url: str) -> None:
    model = model_of(url).bind_tools([get_weather])
    question = HumanMessage("What is the weather in Paris?")
    asked: AIMessage = model.invoke([question])
    [call] = asked.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = ToolMessage('{"temperature": 21, "condition": "sunny"}', tool_call_id=call["id"])
    assert "sunny" in model.invoke([question, asked, result]).content


def check_structured_output(url: str) -> None:
    for method in ("json_schema", "function_calling"):
        model = model_of(url).with_structured_output(Country, method=method)
        assert model.invoke("Describe France in JSON with the keys country and capital.") == Country(
            country="France", capital="Paris"
        ), method


def check_the_responses_api(url: str) -> None:
    answer = model_of(url, use_responses_api=True).invoke(QUESTION)
    assert "Paris" in answer.text


def check_embeddings(url: str) -> None:
    embeddings = OpenAIEmbeddings(
        model="orcinus-demo", base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    first, second = embeddings.embed_documents(["a cat", "seven times nine"])
    assert len(first) == len(second) > 1
    assert sum(abs(a - b) for a, b in zip(embeddings.embed_query("a cat"), first, strict=True)) < 1e-3
