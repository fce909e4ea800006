"""What comes back for one request, and when: server-sent events become times and counts.

It is handed bytes and the time at which they came, and reads no clock and no socket.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orcinus.engine.errors import OrcinusError


class LoadError(OrcinusError):
    """The load cannot be run, or nothing of it was answered; the message is for the user."""


class RequestFailedError(LoadError):
    """One request got no complete answer. Failures are counted by `reason`, the message may say more.

    It is a refusal where the server found fault with the request, so that another one may be answered.
    """

    def __init__(self, reason: str, detail: str = "", *, is_refusal: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.is_refusal = is_refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request's measurements. Times are in seconds on the clock of the load; counts are the server's own.

    `chunk_times_s` are those of the chunks that had text in them; for an answer without any text, that of its end.
    """

    sent_s: float
    ended_s: float
    asked_prompt_tokens: int | None
    asked_output_tokens: int
    chunk_times_s: list[float]
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    failure: str | None = None
    error: str | None = None

    @property
    def output_tokens(self) -> int:
        """As the server counts them; where it does not, every chunk is taken for a token."""
        return len(self.chunk_times_s) if self.completion_tokens is None else self.completion_tokens

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.sent_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None where there was none."""
        return self.chunk_times_s[0] - self.sent_s if self.chunk_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None where there is no second."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """The times between chunks."""
        return [later - earlier for earlier, later in itertools.pairwise(self.chunk_times_s)]


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        if self.delta is None:
            return bool(self.text)
        return bool(self.delta.content or self.delta.reasoning_content or self.delta.reasoning)


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError)
_decode = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True)
class AnswerStream:
    """One answer as its bytes come. Its methods raise `RequestFailedError`."""

    chunk_times_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    finish_reason: str | None = None
    _usage: _Usage | None = None
    _is_done: bool = False
    _rest: bytes = b""

    def feed(self, now_s: float, data: bytes) -> None:
        """Take in bytes, which may end anywhere."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(now_s, line[5:].strip())

    def record(self, sent_s: float, asked_prompt_tokens: int | None, asked_output_tokens: int) -> RequestRecord:
        """The measurements, once the server has closed the answer."""
        if self.ended_s is None or not (self._is_done or self.finish_reason):
            raise RequestFailedError("the stream stopped before the end of the answer")
        usage = self._usage or _Usage()
        details = usage.prompt_tokens_details or _Details()
        return RequestRecord(
            sent_s=sent_s,
            ended_s=self.ended_s,
            asked_prompt_tokens=asked_prompt_tokens,
            asked_output_tokens=asked_output_tokens,
            chunk_times_s=self.chunk_times_s or [self.ended_s],
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=details.cached_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason=self.finish_reason,
        )

    def _take(self, now_s: float, data: bytes) -> None:
        if data == b"[DONE]":
            self._is_done = True
            return
        try:
            event = _decode(data)
        except NOT_JSON as error:
            raise RequestFailedError("an event of the stream is not what OpenAI's API has", str(error)) from None
        if event.error is not None:
            raise RequestFailedError("an error in the stream", error_message(event.error))
        self._usage = event.usage or self._usage
        for choice in event.choices or ():
            self._take_choice(now_s, choice)

    def _take_choice(self, now_s: float, choice: _Choice) -> None:
        if choice.has_text:
            self.chunk_times_s.append(now_s)
        if choice.has_text or choice.finish_reason:
            self.ended_s = now_s
        self.finish_reason = choice.finish_reason or self.finish_reason


def error_message(error: Any) -> str:
    """The message in the `error` of a body, which servers write as an object or as a string."""
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)
