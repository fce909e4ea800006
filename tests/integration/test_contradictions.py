"""Parameters that cannot all be met: a 400 that names both, on every endpoint, and nobody else is harmed."""

import json
from typing import Any

import pytest

from tests.server_process import ServerProcess

HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi", "max_tokens": 8},
    "/v1/chat/completions": {"messages": HI, "max_tokens": 8},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 8},
    "/v1/messages": {"messages": HI, "max_tokens": 8, "model": "orcinus-demo"},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {  # by endpoint: what the form of the answer is called there
    "/v1/chat/completions": (
        "response_format",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    ),
    "/v1/responses": ("text.format", {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}),
    "/v1/messages": ("output_config.format", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
}
LETTERS = ["r", "b", "re", "bl", "red", "blu", "blue"]


def tokens(server: ServerProcess, text: str) -> list[int]:
    body = {"prompt": text, "add_special_tokens": False}
    ids: list[int] = server.http.post("/tokenize", json=body).json()["tokens"]
    return ids


def told(server: ServerProcess, path: str, **parameters: Any) -> str:
    """The message of the 400 that both a whole answer and a stream are."""
    messages = set()
    for is_streamed in (False, True):
        response = server.http.post(path, json={**BODIES[path], **parameters, "stream": is_streamed})
        assert response.status_code == 400, response.text
        messages.add(response.json()["error"]["message"])
    [message] = messages
    assert isinstance(message, str)
    return message


@pytest.mark.parametrize("path", BODIES)
def test_tokens_that_a_form_cannot_be_written_in_are_named_with_the_form(server: ServerProcess, path: str) -> None:
    fives = tokens(server, "5")
    for name, form in {"regex": "[a-z]{3}", "choice": ["red", "blue"], "grammar": 'start: "yes" | "no"'}.items():
        message = told(server, path, allowed_token_ids=fives, structured_outputs={name: form})
        assert f"allowed_token_ids and structured_outputs.{name} together" in message
    if path in FORMS:
        name, parameters = FORMS[path]
        assert f"allowed_token_ids and {name} together" in told(server, path, allowed_token_ids=fives, **parameters)


@pytest.mark.parametrize("path", BODIES)
def test_words_that_may_not_come_are_named_with_what_needs_them(server: ServerProcess, path: str) -> None:
    choice = {"choice": ["red", "blue"]}
    message = told(server, path, bad_words=LETTERS, structured_outputs=choice)
    assert "bad_words and structured_outputs.choice together" in message
    message = told(server, path, bad_words=["5"], allowed_token_ids=tokens(server, "5"))
    assert "allowed_token_ids and bad_words together" in message
    message = told(server, path, bad_words=["a", "b"], structured_outputs={"regex": "[ab]"})
    assert "bad_words and structured_outputs.regex together" in message


@pytest.mark.parametrize("path", BODIES)
def test_a_choice_that_other_tokens_than_those_of_a_word_can_spell_is_generated(
    server: ServerProcess, path: str
) -> None:
    body = {**BODIES[path], "bad_words": ["e"], "structured_outputs": {"choice": ["yes"]}}
    response = server.http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert '"yes"' in response.text


@pytest.mark.parametrize("path", BODIES)
def test_a_length_that_no_choice_has_is_named_with_the_choices(server: ServerProcess, path: str) -> None:
    message = told(server, path, min_tokens=8, structured_outputs={"choice": ["red", "blue"]})
    assert "min_tokens is 8, and the longest of structured_outputs.choice has 4 bytes" in message


@pytest.mark.parametrize("path", BODIES)
def test_a_form_that_is_complete_before_the_minimum_ends_there(server: ServerProcess, path: str) -> None:
    body = {**BODIES[path], "min_tokens": 6, "structured_outputs": {"regex": "q{2}"}}
    response = server.http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert '"qq"' in response.text
    assert any(f'"{end}"' in response.text for end in ("stop", "completed", "end_turn"))


@pytest.mark.parametrize("path", BODIES)
def test_what_comes_up_within_a_stream_ends_it_with_an_error_event_and_no_trace(
    server: ServerProcess, path: str
) -> None:
    late = {"allowed_token_ids": tokens(server, "a"), "structured_outputs": {"regex": "aa[0-9]"}}
    response = server.http.post(path, json={**BODIES[path], **late})
    assert response.status_code == 400
    assert "after 2 tokens" in response.json()["error"]["message"]
    response = server.http.post(path, json={**BODIES[path], **late, "stream": True})
    assert response.status_code == 200
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    problem = next(event for event in events if "error" in json.dumps(event) and "together leave" in json.dumps(event))
    assert "allowed_token_ids and structured_outputs.regex" in json.dumps(problem)
    assert "Traceback" not in server.log


def test_others_in_the_same_steps_are_not_harmed(server: ServerProcess) -> None:
    fine = {"prompt": "Hi", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "n": 4}
    alone = server.http.post("/v1/completions", json=fine).json()["choices"]
    with server.http.stream("POST", "/v1/completions", json={**fine, "n": 1, "stream": True}) as beside:
        lines = beside.iter_lines()
        next(lines)
        for _ in range(3):
            told(
                server, "/v1/completions", allowed_token_ids=tokens(server, "5"), structured_outputs={"regex": "[a-z]"}
            )
        texts = [json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")]
    assert alone[0]["text"].endswith("".join(texts))
    assert server.http.post("/v1/completions", json=fine).json()["choices"] == alone
