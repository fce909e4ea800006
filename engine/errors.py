"""The exception tree of the engine. `server.errors` maps it to HTTP; nothing here knows a status code.

OrcinusError
├── InvalidRequestError        the caller's fault: names the parameter, the limit and the value
│   ├── ContextLengthError     prompt (+ max_tokens) does not fit the context
│   └── UnenforceableSchemaError  a JSON schema has keywords that cannot be enforced; says what is left without them
├── ModelLoadError             the model cannot be loaded or served
├── QueueFullError             the bounded queue has no room; says when to come back
├── QuotaError                 this client has all that it may have for now; says when to come back
├── EngineUnavailableError     loading, draining or dead
│   ├── DrainingError          takes no new work any more
│   └── EngineKilledError      ended from outside
├── RequestTimeoutError        the request's own deadline passed
└── RequestFailedError         a fault while running this request
    └── RequestQuarantinedError  engines ended while they ran it
"""

from collections.abc import Sequence

import msgspec

_MAX_REASON_CHARS = 400


class OrcinusError(Exception):
    """Base of every error that this project raises on purpose."""


class InvalidRequestError(OrcinusError):
    """A request that can never be served. `param` is the name of the field at fault, if it is one field's."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """The prompt, or the prompt and `max_tokens` together, exceed the context length.

    `sizes` are the prompt's length, what is to follow it, and the context's, in tokens, where they are known.
    """

    def __init__(self, message: str, param: str | None = None, sizes: tuple[int, int, int] | None = None) -> None:
        super().__init__(message, param)
        self.sizes = sizes


class UnenforceableKeyword(msgspec.Struct, frozen=True):
    """A keyword of a JSON schema that cannot be enforced. `place` leads from the schema to the part that has it."""

    place: tuple[str | int, ...]
    keyword: str
    reason: str = ""


class UnenforceableSchemaError(InvalidRequestError):
    """A JSON schema cannot be enforced because of these keywords. `rest` is the schema without them, as JSON."""

    def __init__(self, message: str, param: str | None, keywords: Sequence[UnenforceableKeyword], rest: str) -> None:
        super().__init__(message, param)
        self.keywords = tuple(keywords)
        self.rest = rest


class ModelLoadError(OrcinusError):
    """The model cannot be loaded, or is of a kind that this engine cannot serve. The message says which."""


class QueueFullError(OrcinusError):
    """The queue is at its bound. `retry_after_s` is estimated from the measured service rate."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaError(OrcinusError):
    """The client has as many requests in flight as it may, or no tokens left. `retry_after_s` is an estimate."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineUnavailableError(OrcinusError):
    """The engine is loading, draining or has ended. `retry_after_s` is a guess at when it is back."""

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DrainingError(EngineUnavailableError):
    """Tells that what is in flight is finished, and nothing new is taken."""


class EngineKilledError(EngineUnavailableError):
    """The engine was ended from outside, as far as one can tell: by a signal that no fault of its own raises."""


class RequestTimeoutError(OrcinusError):
    """The request's deadline passed, in the queue or while it ran."""


class RequestFailedError(OrcinusError):
    """The engine failed while it ran this request."""


class RequestQuarantinedError(RequestFailedError):
    """Engines ended again and again while they ran this request, now or a short time ago."""


def reason_of(error: Exception) -> str:
    """Return an error's message as one line, whatever a library put into it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2]) or type(error).__name__
    return reason if len(reason) <= _MAX_REASON_CHARS else reason[:_MAX_REASON_CHARS] + "…"
