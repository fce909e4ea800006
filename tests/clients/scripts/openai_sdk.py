"""The official OpenAI SDK, in the version of the environment that runs this."""

import asyncio
import json
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MODEL = "orcinus-demo"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
WEATHER_QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
COUNTRY_QUESTION: Any = [{"role": "user", "content": "Describe France in JSON with the keys country and capital."}]


class Country(BaseModel):
    country: str
    capital: str


def client_of(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def check_an_answer(url: str) -> None:
    answer = client_of(url).chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")


def check_a_completion(url: str) -> None:
    answer = client_of(url).completions.create(model=MODEL, prompt="The capital of France is", temperature=0)
    assert answer.choices[0].text


def check_an_asynchronous_answer(url: str) -> None:
    async def ask() -> str:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
            stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True)
            streamed = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(streamed) == answer.choices[0].message.content
            return "".join(streamed)

    assert "Paris" in asyncio.run(ask())


def check_a_stream(url: str) -> None:
    stream = client_of(url).chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert last.usage is not None
    assert last.usage.completion_tokens > 0


def check_events_of_the_streaming_helper(url: str) -> None:
    with client_of(url).chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    deltas = [event.delta for event in events if event.type == "content.delta"]
    [done] = [event for event in events if event.type == "content.done"]
    assert "".join(deltas) == done.content == final.choices[0].message.content
    assert "Paris" in done.content


def check_parsing_into_a_model(url: str) -> None:
    answer = client_of(url).chat.completions.parse(
        model=MODEL, messages=COUNTRY_QUESTION, temperature=0, response_format=Country
    )
    assert answer.choices[0].message.parsed == Country(country="France", capital="Paris")


def check_streaming_into_a_model(url: str) -> None:
    with client_of(url).chat.completions.stream(
        model=MODEL, messages=COUNTRY_QUESTION, temperature=0, response_format=Country
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Country(country="France", capital="Paris")


def check_a_round_trip_with_a_tool(url: str) -> None:
    client = client_of(url)
    asked = client.chat.completions.create(model=MODEL, messages=WEATHER_QUESTION, temperature=0, tools=[WEATHER])
    assert asked.choices[0].finish_reason == "tool_calls"
    [call] = asked.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "condition": "sunny"}'}
    conversation = [*WEATHER_QUESTION, asked.choices[0].message.to_dict(), result]
    answer = client.chat.completions.create(model=MODEL, messages=conversation, temperature=0, tools=[WEATHER])
    assert answer.choices[0].finish_reason == "stop"
    assert "sunny" in (answer.choices[0].message.content or "")


def check_a_streamed_call_of_a_tool(url: str) -> None:
    with client_of(url).chat.completions.stream(
        model=MODEL, messages=WEATHER_QUESTION, temperature=0, tools=[WEATHER]
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    [done] = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert (done.name, json.loads(done.arguments)) == ("get_weather", {"city": "Paris"})
    [call] = final.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == {"city": "Paris"}


def check_a_response(url: str) -> None:
    client = client_of(url)
    response = client.responses.create(model=MODEL, input="What is the capital of France?", temperature=0)
    assert response.status == "completed"
    assert "Paris" in response.output_text
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def check_counting_the_tokens_of_a_response(url: str) -> None:
    client = client_of(url)
    question = "What is the capital of France?"
    counted = client.responses.input_tokens.count(model=MODEL, input=question)
    answered = client.responses.create(model=MODEL, input=question)
    assert answered.usage is not None
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", answered.usage.input_tokens)


def check_a_streamed_response(url: str) -> None:
    asked: Any = {"model": MODEL, "input": QUESTION, "temperature": 0}
    with client_of(url).responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert "Paris" in text
    assert final.output_text == text
    raw = list(client_of(url).responses.create(**asked, stream=True))
    assert [raw[0].type, raw[-1].type] == ["response.created", "response.completed"]
    assert [event.sequence_number for event in raw] == list(range(len(raw)))


def check_parsing_a_response_into_a_model(url: str) -> None:
    response = client_of(url).responses.parse(
        model=MODEL,
        input="Describe France in JSON with the keys country and capital.",
        temperature=0,
        text_format=Country,
    )
    assert response.output_parsed == Country(country="France", capital="Paris")


def check_a_round_trip_with_a_tool_of_responses(url: str) -> None:
    client = client_of(url)
    tool: Any = {"type": "function", **WEATHER["function"]}
    asked = client.responses.create(model=MODEL, input=WEATHER_QUESTION, temperature=0, tools=[tool])
    [call] = [item for item in asked.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    output = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": '{"temperature": 21, "condition": "sunny"}',
    }
    conversation: Any = [*WEATHER_QUESTION, *[item.to_dict() for item in asked.output], output]
    answer = client.responses.create(model=MODEL, input=conversation, temperature=0, tools=[tool])
    assert "sunny" in answer.output_text


def check_embeddings(url: str) -> None:
    client = client_of(url)
    answer = client.embeddings.create(model=MODEL, input=["a cat", "a cat", "seven times nine"])
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    first, again, other = (entry.embedding for entry in answer.data)
    assert len(first) == len(other)
    assert sum(abs(a - b) for a, b in zip(first, again, strict=True)) < 1e-3
    assert sum(abs(a - b) for a, b in zip(first, other, strict=True)) > 0.1
    plain = client.embeddings.create(model=MODEL, input="a cat", encoding_format="float")
    assert sum(abs(a - b) for a, b in zip(first, plain.data[0].embedding, strict=True)) < 1e-3


def check_models(url: str) -> None:
    client = client_of(url)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"


def check_errors(url: str) -> None:
    client = client_of(url)
    error = error_of(openai.BadRequestError, lambda: ask(client, temperature=9))
    assert (error.param, error.code) == ("temperature", None)
    error = error_of(openai.NotFoundError, lambda: ask(client, model="gpt-5"))
    assert (error.param, error.code) == ("model", "model_not_found")
    error = error_of(openai.BadRequestError, lambda: ask(client, max_tokens=100_000))
    assert error.code == "context_length_exceeded"


def ask(client: OpenAI, **body: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **body})


def error_of(kind: type[openai.APIStatusError], call: Any) -> openai.APIStatusError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")
