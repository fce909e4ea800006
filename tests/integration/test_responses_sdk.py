"""The Responses API of the official `openai` package against a real server process on the demo model.

What the model says is not the point, so nothing depends on its wording, but for one question that it must know.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from openai.types.responses import FunctionToolParam, Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.server_process import ServerProcess, StartServer

pytestmark = pytest.mark.slow  # the contract, and clients of others, are checked elsewhere, too

MODEL = "orcinus-demo"
QUESTION = "What is the capital of France?"
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"unit": {"enum": ["C", "F"]}, "is_forecast": {"type": "boolean"}},
        "required": ["unit", "is_forecast"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Answer(BaseModel):
    """Short whatever the model says."""

    is_certain: bool
    digit: Literal[1, 2, 3]


def client_of(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.fixture
def tool_client(start_server: StartServer) -> Iterator[OpenAI]:
    """The demo model's template knows no tools, but a call can be required of it."""
    with client_of(start_server("--tool-call-parser", "hermes")) as client:
        yield client


def check_types(answer: Response) -> None:
    """The SDK builds its objects without checking them; this does."""
    Response.model_validate(answer.to_dict(), strict=True)


def test_the_demo_model_knows_the_capital_of_france(client: OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
    check_types(answer)
    assert "Paris" in answer.output_text
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_a_response_says_what_a_chat_completion_says(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=QUESTION, instructions="Be brief.", temperature=0)
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
        temperature=0,
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_streamed_events_join_to_the_whole_response(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 20}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    for number, event in enumerate(events):
        EVENTS.validate_python(event.to_dict(), strict=True)
        assert event.sequence_number == number
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    [done] = [event.text for event in events if event.type == "response.output_text.done"]
    assert "".join(deltas) == done == whole.output_text
    assert events[0].type == "response.created"
    assert events[-1].type == f"response.{whole.status}"
    assert events[-1].response.output_text == whole.output_text
    assert len(deltas) > 1


def test_the_streaming_helper_of_the_sdk_works(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == text != ""


def test_an_answer_is_parsed_into_a_model(client: OpenAI) -> None:
    answer = client.responses.parse(model=MODEL, input=QUESTION, text_format=Answer, temperature=0)
    check_types(answer)
    assert isinstance(answer.output_parsed, Answer)
    with client.responses.stream(model=MODEL, input=QUESTION, text_format=Answer, temperature=0) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == answer.output_parsed


def test_a_conversation_goes_on_with_the_items_of_the_response(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input=[{"role": "user", "content": QUESTION}], temperature=0)
    items: list[Any] = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "Thanks."}]
    second = client.responses.create(model=MODEL, input=items, temperature=0, max_output_tokens=12)
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "Thanks."},
        ],
        temperature=0,
        max_tokens=12,
    )
    assert second.output_text == chat.choices[0].message.content


def test_a_call_is_made_and_its_result_taken(tool_client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": [WEATHER], "temperature": 0, "max_output_tokens": 100}
    first = tool_client.responses.create(**asked, input="The weather?", tool_choice="required")
    check_types(first)
    [call] = first.output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    with tool_client.responses.stream(**asked, input="The weather?", tool_choice="required") as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        streamed = stream.get_final_response().output[0]
    assert "".join(deltas) == streamed.arguments == call.arguments  # type: ignore[union-attr]
    assert set(json.loads(call.arguments)) == {"unit", "is_forecast"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = tool_client.responses.create(
        **asked, input=[{"role": "user", "content": "The weather?"}, call, result], tool_choice="none"
    )
    check_types(second)
    assert second.output[0].type == "message"


def test_logprobs_come_with_the_text(client: OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL, input=QUESTION, top_logprobs=2, include=["message.output_text.logprobs"], temperature=0
    )
    check_types(answer)
    [message] = answer.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert part.logprobs
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_errors_are_those_that_the_sdk_knows(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.responses.create(model="gpt-5", input=QUESTION)
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=100_000, stream=True)
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "max_output_tokens")
    with pytest.raises(openai.BadRequestError) as stateful:
        client.responses.create(model=MODEL, input=QUESTION, previous_response_id="resp_1")
    assert stateful.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.delete("resp_1")
