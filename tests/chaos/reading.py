"""How what a server wrote becomes an `Answer`: whole answers, and the streams of the three APIs, line by line.

A stream and a whole answer to the same request have the same form here. Knows no sockets, and not what is right.
"""

import json
from abc import ABC, abstractmethod
from typing import Any

from tests.chaos.answers import Answer, Call, ChoiceAnswer
from tests.chaos.bodies import MESSAGES, RESPONSES


class UnreadableError(Exception):
    """The server wrote what no client can read."""


def read_whole(path: str, found: dict[str, Any]) -> Answer:
    if path == RESPONSES:
        return read_response(found)
    if path == MESSAGES:
        return read_message(found)
    answer = Answer()
    for choice in found.get("choices", ()):
        add_choice(answer, choice, choice.get("message", choice))
    for item in found.get("data", ()):
        answer.choices[item["index"]] = ChoiceAnswer(vector=item["embedding"], finish_reason="stop")
    read_usage(answer, found.get("usage"))
    return answer


def new_reader(path: str) -> "StreamReader":
    return {RESPONSES: ResponseReader, MESSAGES: MessageReader}.get(path, CompletionReader)()


class StreamReader(ABC):
    """Takes the lines of a stream in. Raises `UnreadableError`. `is_done` once it has come to its proper end."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.error: dict[str, Any] | None = None
        self.is_done = False
        self.num_events = 0

    def feed(self, line: str) -> None:
        if not line or line.startswith(":"):
            return
        if self.is_done:
            raise UnreadableError(f"a line after the end: {line[:200]}")
        self._take_line(line)

    @abstractmethod
    def _take_line(self, line: str) -> None: ...


class CompletionReader(StreamReader):
    """Of completions and chat completions: data alone, and [DONE] at the end."""

    def _take_line(self, line: str) -> None:
        if not line.startswith("data: "):
            raise UnreadableError(f"a line that is no data: {line[:200]}")
        if line == "data: [DONE]":
            self.is_done = True
            return
        if self.error is not None:
            raise UnreadableError(f"an event after an error: {line[:200]}")
        self._take(read_json(line.removeprefix("data: ")))

    def _take(self, event: dict[str, Any]) -> None:
        self.num_events += 1
        if "error" in event:
            self.error = event["error"]
            return
        for choice in event["choices"]:
            add_choice(self.answer, choice, choice.get("delta", choice))
        read_usage(self.answer, event.get("usage"))


class NamedEventReader(StreamReader):
    """Of streams whose events have a name, which their data repeats. They have one choice."""

    def __init__(self) -> None:
        super().__init__()
        self._name: str | None = None

    @property
    def _choice(self) -> ChoiceAnswer:
        return self.answer.choices.setdefault(0, ChoiceAnswer())

    def _take_line(self, line: str) -> None:
        if self._name is None and line.startswith("event: "):
            self._name = line.removeprefix("event: ")
            return
        if self._name is None or not line.startswith("data: "):
            raise UnreadableError(f"after the name {self._name}: {line[:200]}")
        event = read_json(line.removeprefix("data: "))
        if event["type"] != self._name:
            raise UnreadableError(f"event {self._name} says that it is {event['type']}")
        self._name = None
        self._take(event)
        self.num_events += 1

    @abstractmethod
    def _take(self, event: dict[str, Any]) -> None: ...

    def _fail(self, event: dict[str, Any]) -> None:
        self.error, self.is_done = event["error"], True


class ResponseReader(NamedEventReader):
    """Its events are numbered, and the last one must hold what those before it have said."""

    def _take(self, event: dict[str, Any]) -> None:
        if event["sequence_number"] != self.num_events:
            raise UnreadableError(f"event {self.num_events} has the number {event['sequence_number']}")
        match event["type"]:
            case "response.output_text.delta":
                self._choice.text += event["delta"]
                self._choice.logprobs += event["logprobs"]
            case "response.output_item.added" if event["item"]["type"] == "function_call":
                self._choice.calls.append(Call(event["item"]["name"]))
            case "response.function_call_arguments.delta":
                self._choice.calls[-1].arguments += event["delta"]
            case "response.completed" | "response.incomplete":
                self._end(read_response(event["response"]))
            case "error":
                self._fail(event)

    def _end(self, whole: Answer) -> None:
        said, told = self._choice, whole.choices[0]
        if (said.text, said.calls, said.logprobs) != (told.text, told.calls, told.logprobs):
            raise UnreadableError(f"the last event holds {told}, and those before it said {said}")
        self.answer, self.is_done = whole, True


class MessageReader(NamedEventReader):
    """Its content is blocks, one after the other, each with a beginning and an end."""

    def __init__(self) -> None:
        super().__init__()
        self._num_blocks = 0
        self._is_open = False

    def _take(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "content_block_start":
                self._check(event, is_open=False)
                self._open(event["content_block"])
            case "content_block_delta":
                self._check(event, is_open=True)
                self._extend(event["delta"])
            case "content_block_stop":
                self._check(event, is_open=True)
                self._is_open = False
            case "message_delta":
                self._choice.finish_reason = event["delta"]["stop_reason"]
                read_usage(self.answer, event["usage"])
            case "message_stop":
                self._end()
            case "error":
                self._fail(event)

    def _check(self, event: dict[str, Any], *, is_open: bool) -> None:
        index = self._num_blocks - 1 if is_open else self._num_blocks
        if (event["index"], self._is_open) != (index, is_open):
            raise UnreadableError(f"{event['type']} of block {event['index']} comes after {self._num_blocks} blocks")

    def _open(self, block: dict[str, Any]) -> None:
        self._num_blocks += 1
        self._is_open = True
        if block["type"] == "tool_use":
            self._choice.calls.append(Call(block["name"]))

    def _extend(self, delta: dict[str, Any]) -> None:
        if delta["type"] == "input_json_delta":
            self._choice.calls[-1].arguments += delta["partial_json"]
        else:
            self._choice.text += delta["text"]

    def _end(self) -> None:
        if self._is_open or self._choice.finish_reason is None:
            raise UnreadableError("the message stops before its end")
        for call in self._choice.calls:
            call.arguments = json.dumps(read_json(call.arguments))
        self.is_done = True


def read_response(found: dict[str, Any]) -> Answer:
    """Of a response that is over."""
    seen = ChoiceAnswer(finish_reason=found["status"])
    for item in found["output"]:
        if item["type"] == "function_call":
            seen.calls.append(Call(item["name"], item["arguments"]))
        for part in item.get("content", ()):
            seen.text += part["text"]
            seen.logprobs += part["logprobs"]
    answer = Answer({0: seen})
    read_usage(answer, found["usage"])
    return answer


def read_message(found: dict[str, Any]) -> Answer:
    seen = ChoiceAnswer(finish_reason=found["stop_reason"])
    for block in found["content"]:
        if block["type"] == "tool_use":
            seen.calls.append(Call(block["name"], json.dumps(block["input"])))
        else:
            seen.text += block["text"]
    answer = Answer({0: seen})
    read_usage(answer, found["usage"])
    return answer


def read_json(text: str | bytes) -> dict[str, Any]:
    """An object without NaN. Raises `UnreadableError`."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise UnreadableError(f"not JSON ({error}): {text[:200]!r}") from None
    if not isinstance(found, dict):
        raise UnreadableError(f"not an object: {text[:200]!r}")
    return found


def add_choice(answer: Answer, choice: dict[str, Any], message: dict[str, Any]) -> None:
    """A piece of a choice; a whole one is one piece. `message` holds its text and its calls."""
    seen = answer.choices.setdefault(choice["index"], ChoiceAnswer())
    if seen.finish_reason is not None:
        raise UnreadableError(f"choice {choice['index']} goes on after its finish_reason {seen.finish_reason!r}")
    seen.text += message.get("content") or message.get("text") or ""
    for place, call in enumerate(message.get("tool_calls") or ()):
        add_call(seen.calls, call.get("index", place), call["function"])
    seen.token_ids += choice.get("token_ids") or []
    seen.logprobs += read_logprobs(choice.get("logprobs"))
    seen.finish_reason = choice.get("finish_reason")
    if (prompt_logprobs := choice.get("prompt_logprobs")) is not None:
        if seen.prompt_logprobs is not None:
            raise UnreadableError("prompt_logprobs came twice")
        seen.prompt_logprobs = prompt_logprobs


def add_call(calls: list[Call], index: int, function: dict[str, Any]) -> None:
    """The first piece of a call has its name, and later ones more of its arguments."""
    if (index == len(calls)) != ("name" in function):
        raise UnreadableError(f"call {index}, {function}, comes after {len(calls)} calls")
    if index == len(calls):
        calls.append(Call(function["name"]))
    calls[index].arguments += function["arguments"]


def read_logprobs(found: dict[str, Any] | None) -> list[Any]:
    """An entry for each token, of either API."""
    if found is None:
        return []
    if "content" in found:
        return list(found["content"] or [])
    columns = (found["tokens"], found["token_logprobs"], found["top_logprobs"] or [None] * len(found["tokens"]))
    return [list(entry) for entry in zip(*columns, found["text_offset"], strict=True)]


def read_usage(answer: Answer, usage: dict[str, Any] | None) -> None:
    """Of a prompt all tokens count, whether they were cached or not."""
    if usage is None:
        return
    if "prompt_tokens" in usage:
        answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage.get("completion_tokens", 0)
        return
    answer.prompt_tokens = usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    answer.completion_tokens = usage["output_tokens"]


def _refuse(constant: str) -> None:
    raise UnreadableError(f"{constant} is not JSON")
