"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API. Independent of HTTP.

The content of a message is blocks, in the order in which the model writes them; streamed and whole answers are made
of the same ones.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic_core import from_json

from orcinus.engine.outputs import RequestOutput
from orcinus.server.apis.answer_schemas import INTEGER, STRING, AnswerSchema, constant, list_of, object_with
from orcinus.server.apis.cache_miss import watch_prefix
from orcinus.server.apis.chat_request import ChatRequest, prepare_chat
from orcinus.server.apis.messages.body import MessagesBody, parse_message_count, parse_messages
from orcinus.server.apis.messages.input import CALL_ID_PREFIX, parameter_names, read_offered_tools, to_chat_body
from orcinus.server.apis.parameter_names import naming_parameters
from orcinus.server.apis.single_choice import SingleChoiceGeneration
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.errors import anthropic_error_body
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.requests.caller import ANONYMOUS, Caller

_encode = msgspec.json.encode

_ANTHROPIC_MODELS = "claude-"  # how the names of all of them begin
INVALID_JSON = "INVALID_JSON"  # the key that Anthropic's documentation suggests for arguments that are not JSON


MESSAGE = AnswerSchema(
    "Message",
    object_with(
        id=STRING,
        type=constant("message"),
        role=constant("assistant"),
        content=list_of(object_with(type=STRING)),
        stop_reason=STRING,
        usage=object_with(input_tokens=INTEGER, output_tokens=INTEGER),
    ),
)
MESSAGE_TOKENS = AnswerSchema("MessageTokens", object_with(input_tokens=INTEGER))


async def start_message(
    ctx: ServingContext, body: Mapping[str, Any], caller: Caller = ANONYMOUS
) -> "MessageGeneration":
    """Check, render and tokenize a message, and submit it; nothing is awaited after the engine has admitted it.

    Raises what `server.errors.to_response` maps.
    """
    parsed = parse_messages(body)
    request = await _prepare(ctx, parsed, caller, is_streamed=parsed.stream)
    prefix = await watch_prefix(ctx, request.generation, request.body.messages, request.body.tools)
    with naming_parameters(parameter_names(parsed)):
        stream = ctx.engine.submit(request.generation)
    hides_thinking = parsed.thinking is not None and parsed.thinking.display == "omitted"
    generation = MessageGeneration(ctx, request, stream, is_streamed=parsed.stream, hides_thinking=hides_thinking)
    generation.follow_prefix(prefix)
    return generation


async def count_tokens(ctx: ServingContext, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return how long the prompt of a message would be. Checks what the message itself would be checked for."""
    request = await _prepare(ctx, parse_message_count(body))
    [prompt] = request.generation.prompts
    return {"input_tokens": len(prompt)}


async def _prepare(
    ctx: ServingContext, body: MessagesBody, caller: Caller = ANONYMOUS, *, is_streamed: bool = False
) -> ChatRequest:
    body = _with_served_model(ctx, body)
    with naming_parameters(parameter_names(body)):
        offered = read_offered_tools(body)
        chat = to_chat_body(body, offered)
        form = "output_format" if body.output_format else "output_config.format"
        return await prepare_chat(ctx, chat, _new_id(), caller, offered, is_streamed=is_streamed, format_name=form)


def _with_served_model(ctx: ServingContext, body: MessagesBody) -> MessagesBody:
    """Return the body without a model of Anthropic's that is not served here: the one that is answers in its place.

    Clients of this API ask for such models by themselves, for work beside the conversation, too.
    """
    if body.model is None or not body.model.startswith(_ANTHROPIC_MODELS) or body.model in ctx.model_names:
        return body
    ctx.note_stand_in(body.model)
    return body.model_copy(update={"model": None})


@dataclass(slots=True)
class _Block:
    """A block of content: how it begins, and the text that has come of it."""

    opening: dict[str, Any]
    text: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str(self.opening["type"])

    def whole(self) -> dict[str, Any]:
        text = "".join(self.text)
        if self.kind == "tool_use":
            return {**self.opening, "input": read_input(text)}
        return {**self.opening, self.kind: text}


class MessageGeneration(SingleChoiceGeneration):
    """A message. A stream writes its blocks one after another, and ends each when something of another kind comes.

    With `hides_thinking` the blocks of thinking have no text.
    """

    def __init__(
        self,
        ctx: ServingContext,
        request: ChatRequest,
        stream: OutputStream,
        *,
        is_streamed: bool,
        hides_thinking: bool = False,
    ) -> None:
        super().__init__(ctx, request, stream, is_streamed=is_streamed)
        self._identity = {
            "id": request.generation.request_id,
            "type": "message",
            "role": "assistant",
            "model": ctx.model_name,
        }
        self._hides_thinking = hides_thinking
        self._blocks: list[_Block] = []
        self._delta_head = b""  # of the block that was begun last

    def _collect(self, output: RequestOutput) -> Iterator[int]:
        yield len(output.text)
        for piece in self._take(output):
            if self._begins_block(piece):
                self._begin_block(piece)
            if not (isinstance(piece, ToolCallStart) or self._hides(piece)):
                self._blocks[-1].text.append(piece.text)

    def _whole(self) -> dict[str, Any]:
        content = [block.whole() for block in self._blocks]
        return {**self._identity, "content": content, **self._stop(), "usage": self._usage()}

    def encode_error(self, error: Exception) -> Iterable[bytes]:
        """Return the event on which the SDK raises."""
        return (_event(anthropic_error_body(error)),)

    def _opening_events(self) -> Iterable[bytes]:
        nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        message = {**self._identity, **nothing, "usage": self._usage()}
        return (_event({"type": "message_start", "message": message}),)

    def _piece_events(self, piece: Piece) -> Iterator[bytes]:
        if self._begins_block(piece):
            yield self._end_of_block()
            yield self._start_of_block(self._begin_block(piece))
        if not (isinstance(piece, ToolCallStart) or self._hides(piece)):
            yield b"%b%b}}\n\n" % (self._delta_head, _encode(piece.text))

    def _hides(self, piece: Piece) -> bool:
        return self._hides_thinking and isinstance(piece, Reasoning)

    def _begin_block(self, piece: Piece) -> _Block:
        block = _Block(_opening(piece))
        self._blocks.append(block)
        return block

    def _start_of_block(self, block: _Block) -> bytes:
        """Return the event of a block that was just begun, and encode what is the same in all its deltas, once."""
        kind, name = _DELTAS[block.kind]
        delta = self._block_event("content_block_delta", delta={"type": kind, name: ""})
        self._delta_head = delta.removesuffix(b'""}}\n\n')
        return self._block_event("content_block_start", content_block=block.opening)

    def _closing_events(self) -> Iterable[bytes]:
        ending = _event({"type": "message_delta", "delta": self._stop(), "usage": self._usage()})
        return (self._end_of_block(), ending, _event({"type": "message_stop"}))

    def _begins_block(self, piece: Piece) -> bool:
        if isinstance(piece, ToolCallStart) or not self._blocks:
            return True
        return self._blocks[-1].kind != _KINDS[type(piece)]

    def _end_of_block(self) -> bytes:
        if not self._blocks:
            return b""
        stop = self._block_event("content_block_stop")
        if self._blocks[-1].kind != "thinking":
            return stop
        return self._block_event("content_block_delta", delta={"type": "signature_delta", "signature": ""}) + stop

    def _block_event(self, kind: str, **fields: Any) -> bytes:
        """Return an event of the block that was begun last."""
        return _event({"type": kind, "index": len(self._blocks) - 1, **fields})

    def finish_reason_of(self, index: int, reason: str) -> str:
        return str(self._stop()["stop_reason"])

    def _stop(self) -> dict[str, Any]:
        if isinstance(self.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": self.stop_reason}
        if self.finish_reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        has_calls = any(block.kind == "tool_use" for block in self._blocks)
        return {"stop_reason": "tool_use" if has_calls else "end_turn", "stop_sequence": None}

    def _usage(self) -> dict[str, Any]:
        """Return the usage as this API counts it: tokens that were cached are not among the input's."""
        return {
            "input_tokens": self.usage.prompt_tokens - self.usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.usage.cached_tokens,
            "output_tokens": self.usage.completion_tokens,
            **self.usage.cache_miss,
        }


def read_input(arguments: str) -> dict[str, Any]:
    """Return the arguments of a call as an object: what is complete of JSON that was cut off, of no JSON the text."""
    try:
        value = from_json(arguments or "{}", allow_inf_nan=False, allow_partial=True)
    except ValueError:
        return {INVALID_JSON: arguments}
    return value if isinstance(value, dict) else {INVALID_JSON: arguments}


_KINDS: Mapping[type[Piece], str] = {
    Content: "text",
    Reasoning: "thinking",
    ToolCallStart: "tool_use",
    ToolCallArguments: "tool_use",
}


_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def _opening(piece: Piece) -> dict[str, Any]:
    match piece:
        case Content():
            return {"type": "text", "text": ""}
        case Reasoning():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case ToolCallStart(_, call_id, name):
            return {"type": "tool_use", "id": _tool_use_id(call_id), "name": name, "input": {}}
        case ToolCallArguments(index):
            raise AssertionError(f"arguments of call {index} come before it, or after what follows it")


def _tool_use_id(call_id: str) -> str:
    """Give the id the prefix that clients expect, which `server.apis.messages.input` takes off again."""
    return CALL_ID_PREFIX + call_id.removeprefix("call_")


def _event(data: Mapping[str, Any]) -> bytes:
    """Return a server-sent event, which has the name of its type."""
    return b"event: %b\ndata: %b\n\n" % (str(data["type"]).encode(), _encode(data))


def _new_id() -> str:
    return f"msg_{uuid.uuid4().hex}"
