"""POST /v1/chat/completions: from a body to an answer. Independent of HTTP; `server.operations`
gives it a path."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from orcinus.engine.outputs import RequestOutput
from orcinus.server.apis.answer_schemas import (
    CHOICE,
    IDENTITY,
    STRING_OR_NULL,
    AnswerSchema,
    constant,
    list_of,
    object_with,
)
from orcinus.server.apis.cache_miss import watch_prefix
from orcinus.server.apis.chat.body import ChatBody, parse_chat
from orcinus.server.apis.chat.message import WrittenMessage
from orcinus.server.apis.chat_request import ChatRequest, prepare_chat
from orcinus.server.apis.generation import OpenAIGeneration, PendingChoice
from orcinus.server.apis.json_pieces import JsonList
from orcinus.server.apis.logprobs import ChatLogprobs
from orcinus.server.apis.parameter_names import naming_parameters
from orcinus.server.apis.thinking import thinking_count
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.reading.output_pieces import read_pieces
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.requests.caller import ANONYMOUS, Caller

_NEWER_NAMES = ((re.compile(r"^max_tokens$"), "max_completion_tokens"),)


async def start_chat_completion(
    ctx: ServingContext, body: Mapping[str, Any], caller: Caller = ANONYMOUS
) -> "ChatGeneration":
    """Check, render and tokenize a chat, and submit it; nothing is awaited after the engine has admitted it.

    Raises what `server.errors.to_response` maps: `InvalidRequestError` and its kin, `QueueFullError`,
    `EngineUnavailableError`.
    """
    parsed = parse_chat(body)
    with naming_parameters(() if parsed.max_completion_tokens is None else _NEWER_NAMES):
        request = await prepare_chat(ctx, parsed, ChatGeneration.new_id(), caller)
        prefix = await watch_prefix(ctx, request.generation, request.body.messages, request.body.tools)
        generation = ChatGeneration(ctx, request, ctx.engine.submit(request.generation))
        generation.follow_prefix(prefix)
        return generation


_REPLY = object_with(role=constant("assistant"), content=STRING_OR_NULL, refusal=STRING_OR_NULL)
CHAT_COMPLETION = AnswerSchema(
    "ChatCompletion",
    object_with(object=constant("chat.completion"), choices=list_of(object_with(message=_REPLY, **CHOICE)), **IDENTITY),
)


class ChatGeneration(OpenAIGeneration):
    """A chat completion. A stream's first event of each choice holds the role, and comes with its first text."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    text_fields = (b'"delta":{"content":', b"}")
    body: ChatBody

    def __init__(self, ctx: ServingContext, request: ChatRequest, stream: OutputStream) -> None:
        super().__init__(ctx, request.body, request.generation, stream)
        num_choices = request.generation.num_choices
        self._readers = [request.new_reader() for _ in range(num_choices)]
        self._messages = [WrittenMessage() for _ in range(num_choices)]
        self._thinking = [thinking_count(ctx) for _ in range(num_choices)]
        self._logprobs = ChatLogprobs(self.tokenizer)

    @property
    def num_reasoning_tokens(self) -> int:
        return min(sum(count.num_tokens for count in self._thinking), self.usage.completion_tokens)

    def finish_reason_of(self, index: int, reason: str) -> str:
        reader = self._readers[index]
        return "tool_calls" if reason == "stop" and reader is not None and reader.num_tool_calls > 0 else reason

    def _collect(self, output: RequestOutput) -> Iterator[int]:
        yield self._messages[output.index].add(self._read(output))
        yield from super()._collect(output)

    def _whole_choice(self, choice: PendingChoice) -> dict[str, Any]:
        message = self._messages[choice.index]
        return {
            "index": choice.index,
            "message": message.to_dict(),
            "logprobs": self._choice_logprobs(choice),
            "finish_reason": self._finish_reason(choice.finish_reason, message.has_calls),
            **self._stop_extras(choice),
            **self._token_extras(choice),
        }

    def _response_extras(self) -> dict[str, Any]:
        """Return what is said about the prompt, which is one for all choices: it stands beside them."""
        return self._prompt_extras(self._choices[0])

    def encode(self, output: RequestOutput) -> Iterable[bytes]:
        if self._readers[output.index] is None:
            return super().encode(output)
        self._account(output)
        return self._gather(output, self._read(output))

    def _read(self, output: RequestOutput) -> list[Piece]:
        reader = self._readers[output.index]
        pieces = read_pieces(reader, output)
        if reader is not None:
            self._thinking[output.index].add(output.token_ids, pieces)
        return pieces

    def _add_text(self, choice: PendingChoice, output: RequestOutput) -> int:
        return 0  # it is read as a message

    def _add_logprobs(self, choice: PendingChoice, output: RequestOutput) -> Iterator[int]:
        if self.body.logprobs and output.logprobs:
            written = self._logprobs.write(output.logprobs)
            choice.logprobs.add(written)
            yield len(written)

    def _events(self, choice: PendingChoice, news: str | list[Piece]) -> Iterator[bytes]:
        """Return the events of a choice: its role, each new piece of its message, why it ended.

        What is told of tokens goes with the last piece, so that text comes before the event that ends the choice.
        """
        pieces: list[Piece] = ([Content(news)] if news else []) if isinstance(news, str) else news
        if not choice.has_begun:
            yield from self._opening_event(choice)
        deltas = [*map(_delta, pieces)]
        if not deltas and choice.num_tokens and self._has_details:
            deltas = [{}]
        for number, delta in enumerate(deltas, start=1):
            yield from self._delta_event(choice, delta, is_last=number == len(deltas))
        if choice.finish_reason:
            yield from self._closing_event(choice)

    def _opening_event(self, choice: PendingChoice) -> Iterator[bytes]:
        entry = _chunk_choice(choice.index, {"role": "assistant", "content": ""})
        return self._event(entry, num_unsaid_tokens=choice.num_tokens, **self._prompt_extras(choice))

    def _delta_event(self, choice: PendingChoice, delta: dict[str, Any], *, is_last: bool) -> Iterator[bytes]:
        if not is_last:
            return self._event(_chunk_choice(choice.index, delta))
        entry = _chunk_choice(choice.index, delta, self._choice_logprobs(choice))
        event = self._event({**entry, **self._token_extras(choice)})
        choice.token_ids = JsonList()
        return event

    def _closing_event(self, choice: PendingChoice) -> Iterator[bytes]:
        reader = self._readers[choice.index]
        has_calls = reader is not None and reader.num_tool_calls > 0
        entry = {
            **_chunk_choice(choice.index, {}),
            "finish_reason": self._finish_reason(choice.finish_reason, has_calls),
        }
        return self._event({**entry, **self._stop_extras(choice), **self._token_extras(choice)})

    @staticmethod
    def _finish_reason(reason: str | None, has_calls: bool) -> str | None:
        return "tool_calls" if reason == "stop" and has_calls else reason

    def _choice_logprobs(self, choice: PendingChoice) -> dict[str, Any] | None:
        return {"content": choice.logprobs, "refusal": None} if self.body.logprobs else None

    def _prompt_extras(self, choice: PendingChoice) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if self.body.return_token_ids:
            extras["prompt_token_ids"] = self._prompt_of(choice.index)
        if (ranked := self._ranked_prompt_logprobs(choice)) is not None:
            extras["prompt_logprobs"] = ranked
        return extras

    def _usage(self, num_unsaid_tokens: int = 0) -> dict[str, Any]:
        """Return the usage, which tells what part of the tokens were thoughts."""
        num_thoughts = max(self.num_reasoning_tokens - num_unsaid_tokens, 0)
        details = {"reasoning_tokens": num_thoughts, **self.usage.prediction}
        return {**super()._usage(num_unsaid_tokens), "completion_tokens_details": details}


def _chunk_choice(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _delta(piece: Piece) -> dict[str, Any]:
    match piece:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case ToolCallStart(index, call_id, name, True):
            custom = {"name": name, "input": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "custom", "custom": custom}]}
        case ToolCallStart(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case ToolCallArguments(index, text, True):
            return {"tool_calls": [{"index": index, "custom": {"input": text}}]}
        case ToolCallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
