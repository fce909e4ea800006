"""An admitted request and its answer, streamed or whole: what all APIs that generate share.

`Generation` counts and collects; `OpenAIGeneration` is what completions and chat completions have in common. `whole`
gives one JSON object; `encode` turns one output of the engine into the bytes of its events, which is the hot path
of streaming: what does not change within a choice is encoded once. Knows no HTTP.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orcinus.engine.errors import RequestFailedError
from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.server.apis.logprobs import prompt_logprobs
from orcinus.server.apis.timings import Timings
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.errors import error_body
from orcinus.server.requests.bodies import GenerationBody, StreamOptions

_encode = msgspec.json.encode
_DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class PendingChoice:
    """Holds what has come of one choice, in pieces that were not written yet."""

    index: int
    has_begun: bool = False
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, output: RequestOutput) -> None:
        self.text.append(output.text)
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or []
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        self.finish_reason = output.finish_reason
        self.stop_reason = output.stop_reason


class Usage:
    """Tokens of a request, summed over its choices. A prompt counts once, whatever n is."""

    def __init__(self, request: GenerationRequest) -> None:
        self._n = request.sampling.n
        self.prompt_tokens = sum(map(len, request.prompts))
        self.completion_tokens = 0
        self.cached_tokens = 0

    def add(self, output: RequestOutput) -> None:
        self.completion_tokens += len(output.token_ids)
        if output.num_cached_tokens and output.index % self._n == 0:
            self.cached_tokens += output.num_cached_tokens

    def to_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Generation(ABC):
    """One request in the engine, whose answer is one object: `whole`."""

    def __init__(self, ctx: ServingContext, request: GenerationRequest, stream: OutputStream) -> None:
        self.request = request
        self.stream = stream
        self.tokenizer = ctx.engine.tokenizer
        self.usage = Usage(request)
        self.timings = Timings()
        self._num_open = request.num_choices

    async def whole(self) -> dict[str, Any]:
        """Return the complete answer. Raises what the stream raises, and never returns a part of an answer."""
        try:
            async for output in self.stream:
                self._account(output)
                self._collect(output)
        finally:
            self.stream.abort()
        self._check_complete()
        return self._whole()

    def headers(self) -> dict[str, str]:
        """Return the headers of the whole answer, once it is complete."""
        return {"server-timing": self.timings.to_header(self.usage.cached_tokens)}

    @abstractmethod
    def _collect(self, output: RequestOutput) -> None:
        """Keep an output for the whole answer."""

    @abstractmethod
    def _whole(self) -> dict[str, Any]:
        """Return the whole answer, now that every choice is complete."""

    def _account(self, output: RequestOutput) -> None:
        if output.finish_reason in {"error", "abort"}:
            raise RequestFailedError(output.error or f"the request ended with {output.finish_reason}")
        self.usage.add(output)
        self._num_open -= output.finish_reason is not None
        if output.timing is not None:
            self.timings.add(output.timing)

    def _check_complete(self) -> None:
        if self._num_open:
            raise RequestFailedError("the request was ended before it was complete")


class StreamableGeneration(Generation):
    """A request whose answer may also be a stream: `stream` is iterated and each output encoded.

    Whoever iterates `stream` aborts it when leaving, for whatever reason; at its end that does nothing.
    """

    def __init__(
        self, ctx: ServingContext, request: GenerationRequest, stream: OutputStream, *, is_streamed: bool
    ) -> None:
        super().__init__(ctx, request, stream)
        self.is_streamed = is_streamed

    @abstractmethod
    def encode(self, output: RequestOutput) -> bytes:
        """Return the events of one output; empty while there is nothing to say. Raises `RequestFailedError`."""

    @abstractmethod
    def encode_end(self) -> bytes:
        """Return the last events. Raises `RequestFailedError` if the stream ended before every choice did."""

    @abstractmethod
    def encode_error(self, error: Exception) -> bytes:
        """Return the last events of a stream that an error ends."""


class OpenAIGeneration(StreamableGeneration):
    """A completion or a chat completion."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    text_fields: tuple[bytes, bytes]  # what stands before and after the text in a choice that has nothing else

    def __init__(
        self, ctx: ServingContext, body: GenerationBody, request: GenerationRequest, stream: OutputStream
    ) -> None:
        super().__init__(ctx, request, stream, is_streamed=body.stream)
        self.body = body
        self._choices = [PendingChoice(index) for index in range(request.num_choices)]
        self._identity = {
            "id": request.request_id,
            "object": self.whole_object,
            "created": int(time.time()),
            "model": ctx.model_name,
            "system_fingerprint": ctx.fingerprint,
        }
        options = body.stream_options or StreamOptions.model_validate({})
        self._ends_with_usage = options.include_usage or options.include_timing
        self._has_timing = options.include_timing
        self._has_running_usage = options.continuous_usage_stats
        self._has_details = sampling_has_details(request) or body.return_token_ids
        self._head = _encode({**self._identity, "object": self.chunk_object})[:-1]
        before, after = self.text_fields
        self._text_heads = [
            b'data: %b,"choices":[{"index":%d,%b' % (self._head, index, before) for index in range(request.num_choices)
        ]
        self._text_end = b'%b,"logprobs":null,"finish_reason":null}]' % after

    @classmethod
    def new_id(cls) -> str:
        return f"{cls.id_prefix}-{uuid.uuid4().hex}"

    def _collect(self, output: RequestOutput) -> None:
        self._choices[output.index].add(output)

    def _whole(self) -> dict[str, Any]:
        return {
            **self._identity,
            **self._response_extras(),
            "choices": [self._whole_choice(choice) for choice in self._choices],
            "usage": self.usage.to_dict(),
        }

    def encode(self, output: RequestOutput) -> bytes:
        self._account(output)
        has_begun = self._choices[output.index].has_begun
        if has_begun and not self._has_details and output.finish_reason is None:
            return self._text_event(output.index, output.text) if output.text else b""
        due = self._gather(output, has_text=bool(output.text))
        return self._events(due) if due else b""

    def _gather(self, output: RequestOutput, *, has_text: bool) -> PendingChoice | None:
        """Add an output to its choice. Return the choice if it is to be written now; a new one gathers what follows."""
        choice = self._choices[output.index]
        choice.add(output)
        has_tokens = self._has_details and output.token_ids
        if not (has_text or has_tokens or output.finish_reason or output.prompt_logprobs is not None):
            return None
        self._choices[output.index] = PendingChoice(output.index, has_begun=True)
        return choice

    def encode_end(self) -> bytes:
        """Return the event with the usage, if it was asked for."""
        self._check_complete()
        if not self._ends_with_usage:
            return _DONE
        usage = self.usage.to_dict()
        if self._has_timing:
            usage["timing"] = self.timings.to_dict(self.usage.cached_tokens)
        return b'data: %b,"choices":[],"usage":%b}\n\n%b' % (self._head, _encode(usage), _DONE)

    def encode_error(self, error: Exception) -> bytes:
        """Return the event on which the SDK raises."""
        return b"data: %b\n\n%b" % (_encode(error_body(error)), _DONE)

    @abstractmethod
    def _whole_choice(self, choice: PendingChoice) -> dict[str, Any]:
        """Return an entry of `choices` in a whole answer."""

    @abstractmethod
    def _events(self, choice: PendingChoice) -> bytes:
        """Return the events for what a choice has gathered: its first, its last, or one with details."""

    def _text_event(self, index: int, text: str) -> bytes:
        """Return the event that holds nothing but text: nearly all of them."""
        return b"%b%b%b%b" % (self._text_heads[index], _encode(text), self._text_end, self._tail())

    def _response_extras(self) -> dict[str, Any]:
        return {}

    def _event(self, choice: dict[str, Any], **extras: Any) -> bytes:
        """Return one chunk with one choice."""
        fields = _encode({**extras, "choices": [choice]})[1:-1]
        return b"data: %b,%b%b" % (self._head, fields, self._tail())

    def _tail(self) -> bytes:
        """Return the end of a chunk, after its choices."""
        if self._has_running_usage:
            return b',"usage":%b}\n\n' % _encode(self.usage.to_dict())
        return b',"usage":null}\n\n' if self._ends_with_usage else b"}\n\n"

    def _choice_extras(self, choice: PendingChoice) -> dict[str, Any]:
        """Return the fields beyond the specification that were asked for, or that say why the choice ended."""
        extras: dict[str, Any] = {}
        if choice.stop_reason is not None:
            extras["stop_reason"] = choice.stop_reason
        if self.body.return_token_ids:
            extras["token_ids"] = choice.token_ids
        return extras

    def _prompt_of(self, index: int) -> list[int]:
        return self.request.prompts[index // self.request.sampling.n]

    def _ranked_prompt_logprobs(self, choice: PendingChoice) -> Sequence[dict[str, Any] | None] | None:
        """Return the extension `prompt_logprobs`, where it was asked for and is new."""
        if self.body.prompt_logprobs is None or choice.prompt_logprobs is None:
            return None
        return prompt_logprobs(self.tokenizer, choice.prompt_logprobs, self.body.prompt_logprobs)


def sampling_has_details(request: GenerationRequest) -> bool:
    """Return whether the answer has more than text."""
    return request.sampling.logprobs is not None or request.sampling.prompt_logprobs is not None
