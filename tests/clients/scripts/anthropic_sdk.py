"""The official Anthropic SDK."""

from typing import Any

import anthropic
from anthropic import Anthropic

MODEL = "orcinus-demo"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER_QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def client_of(url: str) -> Any:
    return Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)


def ask(url: str, **body: Any) -> Any:
    return client_of(url).messages.create(**asked(**body))


def asked(**body: Any) -> dict[str, Any]:
    """The SDK no longer has a parameter for the temperature; the API does."""
    temperature = {"temperature": body.pop("temperature", 0)}
    return {"model": MODEL, "messages": QUESTION, "max_tokens": 64, "extra_body": temperature, **body}


def check_models(url: str) -> None:
    client = client_of(url)
    [listed] = list(client.models.list())
    assert (listed.id, listed.type, listed.display_name) == (MODEL, "model", MODEL)
    assert client.models.retrieve(MODEL) == listed


def check_a_message(url: str) -> None:
    message = ask(url)
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
    [block] = message.content
    assert "Paris" in block.text
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


def check_limits_and_stop_sequences(url: str) -> None:
    assert ask(url, max_tokens=2).stop_reason == "max_tokens"
    stopped = ask(url, stop_sequences=["Paris"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")


def check_a_stream(url: str) -> None:
    with client_of(url).messages.stream(**asked()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "Paris" in text
    assert final.content[0].text == text == ask(url).content[0].text
    assert final.stop_reason == "end_turn"


def check_a_round_trip_with_a_tool(url: str) -> None:
    call = ask(url, messages=WEATHER_QUESTION, tools=[WEATHER])
    assert call.stop_reason == "tool_use"
    [use] = [block for block in call.content if block.type == "tool_use"]
    assert (use.name, use.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": '{"temperature": 21, "condition": "sunny"}'}
    turns = [
        *WEATHER_QUESTION,
        {"role": "assistant", "content": [block.model_dump() for block in call.content]},
        {"role": "user", "content": [result]},
    ]
    answer = ask(url, messages=turns, tools=[WEATHER])
    assert "sunny" in answer.content[0].text


def check_a_streamed_use_of_a_tool(url: str) -> None:
    with client_of(url).messages.stream(**asked(messages=WEATHER_QUESTION, tools=[WEATHER])) as stream:
        final = stream.get_final_message()
    [use] = [block for block in final.content if block.type == "tool_use"]
    assert (use.name, use.input) == ("get_weather", {"city": "Paris"})


def check_the_tool_runner(url: str) -> None:
    assert run_with_tools(url) == run_with_tools(url, stream=True)


def run_with_tools(url: str, **body: Any) -> str:
    """Return the answer that the SDK's loop ends with."""
    cities: list[str] = []

    def get_weather(city: str) -> str:
        """Get the weather in a city"""
        cities.append(city)
        return '{"temperature": 21, "condition": "sunny"}'

    tools = [anthropic.beta_tool(get_weather)]
    last = (
        client_of(url).beta.messages.tool_runner(**asked(messages=WEATHER_QUESTION, tools=tools, **body)).until_done()
    )
    assert cities == ["Paris"]
    assert last.stop_reason == "end_turn"
    text: str = last.content[0].text
    assert "sunny" in text
    return text


def check_counting_tokens(url: str) -> None:
    counted = client_of(url).messages.count_tokens(model=MODEL, messages=QUESTION)
    assert counted.input_tokens == ask(url).usage.input_tokens


def check_a_thread_goes_on_without_being_kept(url: str) -> None:
    thread = client_of(url).beta.messages.thread(
        model=MODEL, max_tokens=64, unsupported_request_behavior="continue_unthreaded", extra_body={"temperature": 0}
    )
    assert "Paris" in thread.send(QUESTION[0]).content[0].text
    assert thread.send({"role": "user", "content": "And of Italy?"}).content
    assert len(thread.messages) == 4


def check_errors(url: str) -> None:
    assert error_of(anthropic.NotFoundError, url, model="gpt-5")["error"]["type"] == "not_found_error"
    assert error_of(anthropic.BadRequestError, url, temperature=9)["error"]["type"] == "invalid_request_error"


def error_of(kind: Any, url: str, **body: Any) -> Any:
    try:
        ask(url, **body)
    except kind as error:
        return error.body
    raise AssertionError(f"no {kind.__name__}")
