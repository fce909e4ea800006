"""POST /v1/chat/completions: from a body to an answer. Independent of HTTP; `server.operations`
gives it a path."""

import re
from collections.abc import Mapping, Sequence
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
from orcinus.server.apis.chat.body import ChatBody, parse_chat
from orcinus.server.apis.chat_request import ChatRequest, prepare_chat
from orcinus.server.apis.generation import OpenAIGeneration, PendingChoice
from orcinus.server.apis.logprobs import chat_logprobs
from orcinus.server.apis.parameter_names import naming_parameters
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.reading.whole_message import ToolCall, WholeMessage, read_pieces
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
        return ChatGeneration(ctx, request, ctx.engine.submit(request.generation))


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
        self._messages = [WholeMessage() for _ in range(num_choices)]

    def _collect(self, output: RequestOutput) -> None:
        super()._collect(output)
        self._messages[output.index].add(read_pieces(self._readers[output.index], output))

    def _whole_choice(self, choice: PendingChoice) -> dict[str, Any]:
        message = self._messages[choice.index]
        return {
            "index": choice.index,
            "message": _whole_message(message),
            "logprobs": self._choice_logprobs(choice),
            "finish_reason": self._finish_reason(choice.finish_reason, bool(message.tool_calls)),
            **self._choice_extras(choice),
        }

    def _response_extras(self) -> dict[str, Any]:
        """Return what is said about the prompt, which is one for all choices: it stands beside them."""
        return self._prompt_extras(self._choices[0])

    def encode(self, output: RequestOutput) -> bytes:
        reader = self._readers[output.index]
        if reader is None:
            return super().encode(output)
        self._account(output)
        pieces = read_pieces(reader, output)
        due = self._gather(output, has_text=bool(pieces))
        return self._piece_events(due, pieces) if due else b""

    def _piece_events(self, choice: PendingChoice, pieces: Sequence[Piece]) -> bytes:
        """Return an event for each piece; what is told of tokens goes with the last of them."""
        opening = b"" if choice.has_begun else self._opening_event(choice)
        if not (pieces or choice.finish_reason or choice.token_ids):
            return opening
        deltas = [_delta(piece) for piece in pieces] or [{}]
        early = [
            self._event({"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None})
            for delta in deltas[:-1]
        ]
        reader = self._readers[choice.index]
        has_calls = reader is not None and reader.num_tool_calls > 0
        return opening + b"".join(early) + self._last_event(choice, deltas[-1], has_calls)

    def _events(self, choice: PendingChoice) -> bytes:
        """Return the events of a choice that has no reader."""
        text = "".join(choice.text)
        return self._piece_events(choice, [Content(text)] if text else [])

    def _last_event(self, choice: PendingChoice, delta: dict[str, Any], has_calls: bool) -> bytes:
        return self._event(
            {
                "index": choice.index,
                "delta": delta,
                "logprobs": self._choice_logprobs(choice),
                "finish_reason": self._finish_reason(choice.finish_reason, has_calls),
                **self._choice_extras(choice),
            }
        )

    @staticmethod
    def _finish_reason(reason: str | None, has_calls: bool) -> str | None:
        return "tool_calls" if reason == "stop" and has_calls else reason

    def _opening_event(self, choice: PendingChoice) -> bytes:
        entry = {
            "index": choice.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return self._event(entry, **self._prompt_extras(choice))

    def _choice_logprobs(self, choice: PendingChoice) -> dict[str, Any] | None:
        return chat_logprobs(self.tokenizer, choice.logprobs) if self.body.logprobs else None

    def _prompt_extras(self, choice: PendingChoice) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if self.body.return_token_ids:
            extras["prompt_token_ids"] = self._prompt_of(choice.index)
        if (ranked := self._ranked_prompt_logprobs(choice)) is not None:
            extras["prompt_logprobs"] = ranked
        return extras


def _whole_message(message: WholeMessage) -> dict[str, Any]:
    """Return the message of a whole choice, without the fields that few messages have and this one has not."""
    calls = [_whole_call(call) for call in message.tool_calls]
    return {
        "role": "assistant",
        "content": None if calls and not message.content else message.content,
        "refusal": None,
        **({"reasoning_content": message.reasoning} if message.reasoning else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _whole_call(call: ToolCall) -> dict[str, Any]:
    if call.is_custom:
        return {"id": call.call_id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


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
