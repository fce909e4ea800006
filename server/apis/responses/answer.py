"""POST /v1/responses and /v1/responses/input_tokens: from a body to an answer. Independent of HTTP; `server.operations`
gives both a path.

A response is a chat completion in another form: `server.apis.responses.input` makes a chat of what is asked, and
`server.apis.responses.output` items of what is said. Nothing is stored.
"""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from orcinus.engine.outputs import RequestOutput
from orcinus.server.apis.answer_schemas import (
    INTEGER,
    NUMBER_OR_NULL,
    OBJECT_OR_NULL,
    STRING,
    AnswerSchema,
    constant,
    list_of,
    object_with,
)
from orcinus.server.apis.cache_miss import watch_prefix
from orcinus.server.apis.chat_request import ChatRequest, prepare_chat
from orcinus.server.apis.generation import Usage
from orcinus.server.apis.logprobs import ChatLogprobs
from orcinus.server.apis.offered_tools import is_hosted
from orcinus.server.apis.parameter_names import naming_parameters
from orcinus.server.apis.responses.body import ResponseBody, TextOptions, parse_response
from orcinus.server.apis.responses.input import PARAMETER_NAMES, read_offered_tools, to_chat_body
from orcinus.server.apis.responses.output import Event, OutputItems
from orcinus.server.apis.single_choice import SingleChoiceGeneration, event_pieces
from orcinus.server.apis.thinking import thinking_count
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.errors import ResponseNotFoundError, error_body
from orcinus.server.reading.pieces import Content, Piece
from orcinus.server.requests.caller import ANONYMOUS, Caller


async def start_response(
    ctx: ServingContext, body: Mapping[str, Any], caller: Caller = ANONYMOUS
) -> "ResponseGeneration":
    """Check, render and tokenize a response, and submit it; nothing is awaited after the engine has admitted it.

    Raises what `server.errors.to_response` maps: `InvalidRequestError` and its kin, `QueueFullError`,
    `EngineUnavailableError`.
    """
    asked = parse_response(body)
    offered = read_offered_tools(asked)
    chat = to_chat_body(asked, offered)
    with naming_parameters(PARAMETER_NAMES):
        request = await prepare_chat(
            ctx, chat, _new_id(), caller, offered, is_streamed=asked.stream, format_name="text.format"
        )
        prefix = await watch_prefix(ctx, request.generation, request.body.messages, request.body.tools)
        generation = ResponseGeneration(ctx, asked, request, ctx.engine.submit(request.generation))
        generation.follow_prefix(prefix)
        return generation


RESPONSE = AnswerSchema(
    "Response",
    object_with(
        id=STRING,
        object=constant("response"),
        status={"enum": ["completed", "incomplete", "failed"]},
        output=list_of(object_with(type=STRING)),
        usage=OBJECT_OR_NULL,
        temperature=NUMBER_OR_NULL,
    ),
)


RESPONSE_TOKENS = AnswerSchema(
    "ResponseTokens", object_with(object=constant("response.input_tokens"), input_tokens=INTEGER)
)


async def count_input_tokens(ctx: ServingContext, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return how long the prompt of a response would be. Checks what the response itself would be checked for."""
    asked = parse_response(body)
    offered = read_offered_tools(asked)
    chat = to_chat_body(asked, offered)
    with naming_parameters(PARAMETER_NAMES):
        request = await prepare_chat(ctx, chat, _new_id(), offered=offered)
    [prompt] = request.generation.prompts
    return {"object": "response.input_tokens", "input_tokens": len(prompt)}


def stored_response(ctx: ServingContext, response_id: str) -> NoReturn:
    """Raise the 404 that is due for a response that was given before, and for what belongs to one."""
    raise ResponseNotFoundError(f"there is no response {response_id[:100]!r}: responses are not stored here")


def compacted_response(ctx: ServingContext) -> NoReturn:
    """Raise the 404 that is due for a conversation that is to be made shorter."""
    raise ResponseNotFoundError("there is no compaction here: send the conversation itself, or truncation 'auto'")


def _new_id() -> str:
    return f"resp_{uuid.uuid4().hex}"


class ResponseGeneration(SingleChoiceGeneration):
    """A response. Its events are numbered, and end with one that holds the whole of it."""

    def __init__(self, ctx: ServingContext, asked: ResponseBody, request: ChatRequest, stream: OutputStream) -> None:
        super().__init__(ctx, request, stream, is_streamed=asked.stream)
        self._asked = asked
        self._created_at = int(time.time())
        self._model = ctx.model_name
        self._cached_block_size = ctx.engine.info.block_size if ctx.engine.info.enable_prefix_caching else None
        self._logprobs = ChatLogprobs(self.tokenizer) if asked.has_logprobs else None
        self._items = OutputItems()
        self._new_logprobs: list[bytes] = []
        self._thinking = thinking_count(ctx)
        self._num_events = 0

    def _collect(self, output: RequestOutput) -> Iterator[int]:
        pieces = self._take(output)
        yield len(output.text) + sum(map(len, self._new_logprobs))
        for piece in pieces:
            self._add(piece)

    def _whole(self) -> dict[str, Any]:
        self._end_items()
        return self._response(self._final_status, usage=self._usage())

    def _opening_events(self) -> Iterator[bytes]:
        response = self._response("in_progress")
        return self._encode({"type": f"response.{name}", "response": response} for name in ("created", "in_progress"))

    def _piece_events(self, piece: Piece) -> Iterator[bytes]:
        return self._encode(self._add(piece))

    def _closing_events(self) -> Iterator[bytes]:
        yield from self._encode(self._end_items())
        response = self._response(self._final_status, usage=self._usage())
        yield from self._encode([{"type": f"response.{self._final_status}", "response": response}])

    def encode_error(self, error: Exception) -> Iterator[bytes]:
        """Return the response as failed, its last state, and an event on which the SDK raises, as it has an `error`."""
        problem = error_body(error)["error"]
        if not self._has_begun:
            yield from self._opening_events()
        self._items.close("incomplete")
        failure = {**problem, "code": "server_error"}  # of the few codes that the specification has, the one that fits
        response = self._response("failed", usage=self._usage(), error=failure)
        last = {**problem, "code": problem["code"] or problem["type"], "error": problem, "type": "error"}
        yield from self._encode([{"type": "response.failed", "response": response}, last])

    def _take(self, output: RequestOutput) -> list[Piece]:
        pieces = super()._take(output)
        self._thinking.add(output.token_ids, pieces)
        if self._logprobs is not None and output.logprobs:
            self._new_logprobs.append(self._logprobs.write(output.logprobs))
        if pieces and not any(isinstance(piece, Content) for piece in pieces):
            self._new_logprobs.clear()  # of tokens that are no text of a message
        return pieces

    @property
    def num_reasoning_tokens(self) -> int:
        return self._thinking.num_tokens

    def _add(self, piece: Piece) -> list[Event]:
        return self._items.add(piece, self._logprobs_so_far() if isinstance(piece, Content) else b"")

    def _end_items(self) -> list[Event]:
        return self._items.end(self._final_status, self._logprobs_so_far())

    def _logprobs_so_far(self) -> bytes:
        """Return the log-probabilities that no event has had yet, with commas between them."""
        written = b",".join(self._new_logprobs)
        self._new_logprobs.clear()
        return written

    @property
    def _final_status(self) -> Any:
        return "incomplete" if self.finish_reason == "length" else "completed"

    def _encode(self, events: Iterable[Event]) -> Iterator[bytes]:
        for event in events:
            yield from event_pieces(event["type"], {**event, "sequence_number": self._num_events})
            self._num_events += 1

    def _response(
        self, status: str, *, usage: dict[str, Any] | None = None, error: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        asked = self._asked
        sampling = self.request.sampling
        return {
            "id": self.request.request_id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "background": False,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "metadata": asked.metadata,
            "model": self._model,
            "output": self._items.to_list(),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": _reasoning(asked),
            "service_tier": "default",
            "store": False,
            "temperature": sampling.temperature,
            "text": _text(asked.text),
            "tool_choice": asked.tool_choice or "auto",
            "tools": [_tool(tool) for tool in asked.tools if not is_hosted(tool.get("type"))],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": asked.truncation or "disabled",
            "usage": usage,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": self._num_written_to_cache(usage),
                **usage.cache_miss,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._thinking.num_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _num_written_to_cache(self, usage: Usage) -> int:
        """Return how many of the prompt's tokens, in whole blocks, were computed here for later requests to reuse."""
        if self._cached_block_size is None:
            return 0
        in_blocks = usage.prompt_tokens - usage.prompt_tokens % self._cached_block_size
        return max(in_blocks - usage.cached_tokens, 0)


def _reasoning(asked: ResponseBody) -> dict[str, Any]:
    given = asked.reasoning
    return {"effort": given.effort, "summary": given.summary} if given else {"effort": None, "summary": None}


def _text(asked: TextOptions | None) -> dict[str, Any]:
    given = {} if asked is None else asked.model_dump(by_alias=True, exclude_none=True)
    return {"format": {"type": "text"}, **given}


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    if given["type"] != "function":
        return dict(given)
    return {
        "type": "function",
        "name": given["name"],
        "description": given.get("description"),
        "parameters": given.get("parameters"),
        "strict": given.get("strict") or False,
    }
