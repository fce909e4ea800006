"""One table from exceptions to HTTP, and the two shapes of an error body: OpenAI's, and Anthropic's for its clients.

Every error that leaves the server, as a response or inside a stream, is made here. A message of ours goes out
as it is; of an exception that nobody expected, nothing does.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.exceptions import HTTPException

from orcinus.engine.errors import (
    ContextLengthError,
    DrainingError,
    EngineUnavailableError,
    InvalidRequestError,
    OrcinusError,
    QueueFullError,
    QuotaError,
    RequestFailedError,
    RequestQuarantinedError,
    RequestTimeoutError,
)

MAX_RETRY_AFTER_S = 120
MAX_MESSAGE_CHARS = 2000
MAX_SHOWN_CHARS = 100

_encoder = json.JSONEncoder(ensure_ascii=False)


class ModelNotFoundError(InvalidRequestError):
    """The request names a model that is not served here."""


class ResponseNotFoundError(InvalidRequestError):
    """The request is about a response that was given before: none is stored."""


class UnsupportedThreadError(InvalidRequestError):
    """The request wants the server to keep its conversation. Anthropic's SDK sends it whole where `details` say so."""

    details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}  # noqa: RUF012


class AuthenticationError(InvalidRequestError):
    """No API key, or a wrong one."""


class ModelForbiddenError(InvalidRequestError):
    """The model is served, and the key may not ask for it."""


class AdminKeyNeededError(InvalidRequestError):
    """The key is valid, and is none of an administrator."""


class UsageUnavailableError(OrcinusError):
    """The file in which usage is kept cannot be read."""


class BodyTooLargeError(InvalidRequestError):
    """The body is longer than `max_body_bytes`."""


class UnsupportedMediaTypeError(InvalidRequestError):
    """The body is not what this server reads: JSON, not compressed."""


class BodyTimeoutError(RequestTimeoutError):
    """The client took too long to send its body."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """Says what the protocol calls an error."""

    status: int
    type: str = "invalid_request_error"
    code: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error as it is sent: `body` is a complete JSON document, and `headers` are all that describe it."""

    status: int
    headers: dict[str, str]
    body: bytes


# A class that is not listed takes the row of its nearest base that is.
ERROR_TABLE: Mapping[type[BaseException], ErrorKind] = {
    InvalidRequestError: ErrorKind(400),
    ContextLengthError: ErrorKind(400, code="context_length_exceeded"),
    AuthenticationError: ErrorKind(401, code="invalid_api_key"),
    ModelForbiddenError: ErrorKind(403, code="model_not_found"),
    AdminKeyNeededError: ErrorKind(403, code="admin_key_needed"),
    ModelNotFoundError: ErrorKind(404, code="model_not_found"),
    ResponseNotFoundError: ErrorKind(404, code="response_not_found"),
    RequestTimeoutError: ErrorKind(408, "timeout"),
    BodyTooLargeError: ErrorKind(413, code="body_too_large"),
    UnsupportedMediaTypeError: ErrorKind(415, code="unsupported_media_type"),
    QueueFullError: ErrorKind(429, "rate_limit_error", "queue_full"),
    QuotaError: ErrorKind(429, "rate_limit_error", "quota"),
    RequestFailedError: ErrorKind(500, "server_error"),
    UsageUnavailableError: ErrorKind(500, "server_error", "usage_unavailable"),
    RequestQuarantinedError: ErrorKind(500, "server_error", "request_quarantined"),
    EngineUnavailableError: ErrorKind(503, "server_error", "engine_unavailable"),
    DrainingError: ErrorKind(503, "server_error", "draining"),
    BaseException: ErrorKind(500, "server_error"),
}

_HTTP_TYPES = {408: "timeout", 429: "rate_limit_error"}
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}
# What Anthropic's API calls an error, by its status; others are invalid_request_error or, from 500 on, api_error.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_UNEXPECTED_MESSAGE = "the server failed while it handled this request"


def kind_of(error: BaseException) -> ErrorKind:
    """Return the table's row for this error."""
    if isinstance(error, HTTPException):
        status = error.status_code
        kind_type = _HTTP_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        return ErrorKind(status, kind_type, _HTTP_CODES.get(status))
    return next(ERROR_TABLE[base] for base in type(error).__mro__ if base in ERROR_TABLE)


def is_expected(error: BaseException) -> bool:
    """Return whether the table has a row for it; what has none is a bug of ours and is logged as one."""
    return isinstance(error, HTTPException) or kind_of(error) is not ERROR_TABLE[BaseException]


def error_body(error: BaseException) -> dict[str, Any]:
    """Return `{"error": {"message", "type", "param", "code"}}`, which both responses and streams carry."""
    kind = kind_of(error)
    return {
        "error": {
            "message": _message(error)[:MAX_MESSAGE_CHARS],
            "type": kind.type,
            "param": error.param if isinstance(error, InvalidRequestError) else None,
            "code": kind.code,
        }
    }


def speaks_anthropic(path: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> bool:
    """Return whether a request is of Anthropic's API: by its path, or by a header that its clients always send."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return True
    return any(name == b"anthropic-version" for name, _ in headers)


def anthropic_error_body(error: BaseException, request_id: str | None = None) -> dict[str, Any]:
    """Return `{"type": "error", "error": {"type", "message"}, "request_id"}`, the last where it is known."""
    status = kind_of(error).status
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = _anthropic_context(error) if isinstance(error, ContextLengthError) else _message(error)
    told: dict[str, Any] = {"type": kind, "message": message[:MAX_MESSAGE_CHARS]}
    if isinstance(error, UnsupportedThreadError):
        told["details"] = error.details
    body: dict[str, Any] = {"type": "error", "error": told}
    return body if request_id is None else {**body, "request_id": request_id}


def to_response(
    error: BaseException,
    path: str = "",
    request_id: str | None = None,
    request_headers: Iterable[tuple[bytes, bytes]] = (),
) -> ErrorResponse:
    """Return the status, the headers and the body that answer a request to `path` with this error."""
    is_anthropic = speaks_anthropic(path, request_headers)
    told = anthropic_error_body(error, request_id) if is_anthropic else error_body(error)
    body = msgspec.json.encode(told)
    headers = {"content-type": "application/json", **_extra_headers(error), "content-length": str(len(body))}
    return ErrorResponse(kind_of(error).status, headers, body)


def _anthropic_context(error: ContextLengthError) -> str:
    """Return what Anthropic's API says of a context that is too short.

    Claude Code reads the numbers: it makes the conversation shorter, or asks again for fewer tokens.
    """
    if error.sizes is None:
        return f"prompt is too long: {error}"
    num_prompt, num_wanted, most = error.sizes
    if num_prompt >= most:
        return f"prompt is too long: {num_prompt} tokens > {most - 1} maximum"
    return f"input length and `max_tokens` exceed context limit: {num_prompt} + {num_wanted} > {most}"


def _message(error: BaseException) -> str:
    if isinstance(error, HTTPException):
        return error.detail
    return str(error) if is_expected(error) else _UNEXPECTED_MESSAGE


# The SDKs of OpenAI and Anthropic retry 408 and 5xx by themselves unless they are told not to. A request that is too
# late comes back where there is no time for it, and one that failed in the engine fails there again, or ends it again.
_NOT_TO_BE_RETRIED = (RequestTimeoutError, RequestFailedError)


def _extra_headers(error: BaseException) -> dict[str, str]:
    if isinstance(error, _NOT_TO_BE_RETRIED) and not isinstance(error, BodyTimeoutError):
        return {"x-should-retry": "false"}
    if isinstance(error, (QueueFullError, QuotaError, EngineUnavailableError)):
        return {"retry-after": str(min(max(math.ceil(error.retry_after_s), 1), MAX_RETRY_AFTER_S))}
    if isinstance(error, AuthenticationError):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    return {}


def shown(value: object) -> str:
    """Return a value that a client sent as the JSON that it was, cut where it is long.

    Of a long value no more is encoded than is shown, but for the texts in it.
    """
    if isinstance(value, str):
        value = value[:MAX_SHOWN_CHARS]
    text = ""
    for piece in _encoder.iterencode(value):
        text += piece
        if len(text) > MAX_SHOWN_CHARS:
            return text[: MAX_SHOWN_CHARS - 3] + "..."
    return text
