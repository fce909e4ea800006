"""An admitted request and its answer, streamed or whole: what all APIs that generate share.

`Generation` counts and collects; `OpenAIGeneration` is what completions and chat completions have in common. `whole`
gives one JSON object, in blocks; `encode` turns one output of the engine into the bytes of its events, which is the hot
path of streaming: what does not change within a choice is encoded once. Whatever grows with an answer is written as it
comes and kept as bytes, and both let the event loop go round in between. Knows no HTTP.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orcinus.engine.errors import RequestFailedError
from orcinus.engine.outputs import GenerationRequest, RequestOutput
from orcinus.server.apis.cache_miss import PrefixWatch
from orcinus.server.apis.cache_miss import entries as miss_entries
from orcinus.server.apis.json_pieces import JsonList, JsonText, LazyList, Pacer, pieces_of, write_blocks
from orcinus.server.apis.logprobs import Entries, write_prompt_logprobs
from orcinus.server.apis.timings import Timings
from orcinus.server.context import OutputStream, ServingContext
from orcinus.server.errors import error_body
from orcinus.server.requests.bodies import GenerationBody, StreamOptions

_encode = msgspec.json.encode
_DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class PendingChoice:
    """Holds what has come of one choice and was not given out yet, written as JSON already."""

    index: int
    has_begun: bool = False
    num_tokens: int = 0
    text: JsonText = field(default_factory=JsonText)
    token_ids: JsonList = field(default_factory=JsonList)
    logprobs: JsonList = field(default_factory=JsonList)
    prompt_logprobs: Entries | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Usage:
    """Tokens of a request, summed over its choices. A prompt counts once, whatever n is."""

    def __init__(self, request: GenerationRequest) -> None:
        self._n = request.sampling.n
        self.prompt_tokens = sum(map(len, request.prompts))
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._drafts: dict[int, tuple[int, int]] = {}  # by choice: those tried, and those of them accepted
        self.prefix: PrefixWatch | None = None

    def add(self, output: RequestOutput) -> None:
        self.completion_tokens += len(output.token_ids)
        if output.num_cached_tokens and output.index % self._n == 0:
            self.cached_tokens += output.num_cached_tokens
        if output.num_draft_tokens:
            self._drafts[output.index] = output.num_draft_tokens, output.num_accepted_drafts
        if self.prefix is not None:
            self.prefix.add(output)

    @property
    def cache_miss(self) -> dict[str, Any]:
        """Return the field that says why no more was cached, if there is a reason."""
        miss = None if self.prefix is None else self.prefix.miss
        return {} if miss is None else {"cache_miss": miss.to_dict()}

    @property
    def prediction(self) -> dict[str, int]:
        """Return the fields of `completion_tokens_details` that say what became of drafts, if any were tried."""
        if not self._drafts:
            return {}
        num_accepted = sum(accepted for _, accepted in self._drafts.values())
        num_tried = sum(tried for tried, _ in self._drafts.values())
        return {"accepted_prediction_tokens": num_accepted, "rejected_prediction_tokens": num_tried - num_accepted}

    def to_dict(self, num_unsaid_tokens: int = 0) -> dict[str, Any]:
        """Return the usage less so many tokens, of which the client does not know yet."""
        completion_tokens = self.completion_tokens - num_unsaid_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, **self.cache_miss},
            **({"completion_tokens_details": self.prediction} if self._drafts else {}),
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

    def follow_prefix(self, prefix: PrefixWatch | None) -> None:
        """Have the usage say why no more of the prompt was cached. To be called before anything is read."""
        self.usage.prefix = prefix
        if prefix is not None:
            prefix.admit()

    async def whole(self) -> list[bytes]:
        """Return the complete answer, as the blocks of one JSON object.

        Raises what the stream raises, and never returns a part of an answer.
        """
        pacer = Pacer()
        try:
            async for output in self.stream:
                self._account(output)
                for num_bytes in self._collect(output):
                    await pacer.spend(num_bytes)
        finally:
            self.stream.abort()
        self._check_complete()
        return await write_blocks(self._whole(), pacer)

    def headers(self) -> dict[str, str]:
        """Return the headers of the whole answer, once it is complete."""
        return {"server-timing": ", ".join([self.timings.to_header(self.usage.cached_tokens), *self._miss()])}

    def _miss(self) -> list[str]:
        return [*miss_entries(self.usage.prefix)]

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Return how many of the answer's tokens are thoughts; None where the API does not tell."""
        return None

    def finish_reason_of(self, index: int, reason: str) -> str:
        """Return what the API says of a choice that the engine has ended by `stop` or `length`."""
        return reason

    @abstractmethod
    def _collect(self, output: RequestOutput) -> Iterator[int]:
        """Keep an output for the whole answer, in steps; gives how many bytes each has written."""

    @abstractmethod
    def _whole(self) -> dict[str, Any]:
        """Return the whole answer, now that every choice is complete, for `json_pieces.pieces_of`."""

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

    The code that iterates `stream` aborts it when it leaves, for whatever reason; at its end that does nothing. Events
    are given as pieces, which are to be sent one after another without others in between; an empty piece is a step of
    work, after which the event loop may go round.
    """

    def __init__(
        self, ctx: ServingContext, request: GenerationRequest, stream: OutputStream, *, is_streamed: bool
    ) -> None:
        super().__init__(ctx, request, stream)
        self.is_streamed = is_streamed

    def opening_headers(self) -> dict[str, str]:
        """Return the headers of the stream, which begins with the first event: what is known then."""
        if not self.usage.completion_tokens:
            return {}  # it begins with a comment
        return {"server-timing": ", ".join([f"cached_tokens;desc={self.usage.cached_tokens}", *self._miss()])}

    @abstractmethod
    def encode(self, output: RequestOutput) -> Iterable[bytes]:
        """Return the events of one output; none while there is nothing to say. Raises `RequestFailedError`."""

    @abstractmethod
    def encode_end(self) -> Iterable[bytes]:
        """Return the last events. Raises `RequestFailedError` if the stream ended before every choice did."""

    @abstractmethod
    def encode_error(self, error: Exception) -> Iterable[bytes]:
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
        self._chunk_identity = {**self._identity, "object": self.chunk_object}
        self._head = _encode(self._chunk_identity)[:-1]
        before, after = self.text_fields
        self._text_heads = [
            b'data: %b,"choices":[{"index":%d,%b' % (self._head, index, before) for index in range(request.num_choices)
        ]
        self._text_end = b'%b,"logprobs":null,"finish_reason":null}]' % after

    @classmethod
    def new_id(cls) -> str:
        return f"{cls.id_prefix}-{uuid.uuid4().hex}"

    def _collect(self, output: RequestOutput) -> Iterator[int]:
        return self._add(self._choices[output.index], output)

    def _whole(self) -> dict[str, Any]:
        return {
            **self._identity,
            **self._response_extras(),
            "choices": [self._whole_choice(choice) for choice in self._choices],
            "usage": self._usage(),
        }

    def encode(self, output: RequestOutput) -> Iterable[bytes]:
        self._account(output)
        has_begun = self._choices[output.index].has_begun
        if has_begun and not self._has_details and output.finish_reason is None:
            return (self._text_event(output.index, output.text),) if output.text else ()
        return self._gather(output, output.text)

    def _gather(self, output: RequestOutput, news: Any) -> Iterator[bytes]:
        """Add an output to its choice, and give its events if there are any due; a new one gathers what follows.

        `news` is what the output has for the reader of a message, which is empty where it has nothing.
        """
        choice = self._choices[output.index]
        for _ in self._add(choice, output):
            yield b""
        has_tokens = self._has_details and output.token_ids
        if news or has_tokens or output.finish_reason or output.prompt_logprobs is not None:
            self._choices[output.index] = PendingChoice(output.index, has_begun=True)
            yield from self._events(choice, news)

    def _add(self, choice: PendingChoice, output: RequestOutput) -> Iterator[int]:
        """Write what an output adds to its choice, in steps; gives how many bytes each has written."""
        choice.num_tokens += len(output.token_ids)
        choice.finish_reason = output.finish_reason
        choice.stop_reason = output.stop_reason
        if output.prompt_logprobs is not None:
            choice.prompt_logprobs = output.prompt_logprobs
        if self.body.return_token_ids:
            choice.token_ids.extend(output.token_ids)
        yield self._add_text(choice, output)
        yield from self._add_logprobs(choice, output)

    def _add_text(self, choice: PendingChoice, output: RequestOutput) -> int:
        """Write what an output has of text, and return how much that is."""
        choice.text.add(output.text)
        return len(output.text)

    def encode_end(self) -> Iterable[bytes]:
        """Return the event with the usage, if it was asked for."""
        self._check_complete()
        if not self._ends_with_usage:
            return (_DONE,)
        usage = self._usage()
        if self._has_timing:
            usage["timing"] = self.timings.to_dict(self.usage.cached_tokens)
        return (b'data: %b,"choices":[],"usage":%b}\n\n%b' % (self._head, _encode(usage), _DONE),)

    def encode_error(self, error: Exception) -> Iterable[bytes]:
        """Return the event on which the SDK raises."""
        return (b"data: %b\n\n%b" % (_encode(error_body(error)), _DONE),)

    @abstractmethod
    def _add_logprobs(self, choice: PendingChoice, output: RequestOutput) -> Iterator[int]:
        """Write the log-probabilities that were asked for, in steps; gives how many bytes each has written."""

    @abstractmethod
    def _whole_choice(self, choice: PendingChoice) -> dict[str, Any]:
        """Return an entry of `choices` in a whole answer."""

    @abstractmethod
    def _events(self, choice: PendingChoice, news: Any) -> Iterator[bytes]:
        """Return the events for what a choice has gathered: its first, one with details, its last."""

    def _text_event(self, index: int, text: str) -> bytes:
        """Return the event that holds nothing but text: nearly all of them."""
        return b"%b%b%b%b" % (self._text_heads[index], _encode(text), self._text_end, self._tail())

    def _response_extras(self) -> dict[str, Any]:
        return {}

    def _event(self, choice: dict[str, Any], *, num_unsaid_tokens: int = 0, **extras: Any) -> Iterator[bytes]:
        """Return one chunk with one choice. Its running usage leaves `num_unsaid_tokens` out."""
        yield b"data: "
        tail: dict[str, Any] = {"usage": None} if self._ends_with_usage else {}
        if self._has_running_usage:
            tail = {"usage": self._usage(num_unsaid_tokens)}
        yield from pieces_of({**self._chunk_identity, **extras, "choices": [choice], **tail})
        yield b"\n\n"

    def _tail(self) -> bytes:
        """Return the end of a chunk, after its choices."""
        if self._has_running_usage:
            return b',"usage":%b}\n\n' % _encode(self._usage())
        return b',"usage":null}\n\n' if self._ends_with_usage else b"}\n\n"

    def _usage(self, num_unsaid_tokens: int = 0) -> dict[str, Any]:
        return self.usage.to_dict(num_unsaid_tokens)

    def _stop_extras(self, choice: PendingChoice) -> dict[str, Any]:
        """Return what ended the choice, which the specification has no field for, if it was not the model's end."""
        return {} if choice.stop_reason is None else {"stop_reason": choice.stop_reason}

    def _token_extras(self, choice: PendingChoice) -> dict[str, Any]:
        """Return the token ids, where they were asked for."""
        return {"token_ids": choice.token_ids} if self.body.return_token_ids else {}

    def _prompt_of(self, index: int) -> list[int]:
        return self.request.prompts[index // self.request.sampling.n]

    def _ranked_prompt_logprobs(self, choice: PendingChoice) -> LazyList | None:
        """Return the extension `prompt_logprobs`, where it was asked for and is new."""
        num_top = self.body.prompt_logprobs
        entries = choice.prompt_logprobs
        if num_top is None or entries is None:
            return None
        return LazyList(lambda: write_prompt_logprobs(self.tokenizer, entries, num_top))


def sampling_has_details(request: GenerationRequest) -> bool:
    """Return whether the answer has more than text."""
    return request.sampling.logprobs is not None or request.sampling.prompt_logprobs is not None
