"""Reading a request's body: its type, its size and the time it takes are checked before and while it comes in."""

import asyncio
from typing import Any

from starlette.requests import Request

from server.errors import BodyTimeoutError, BodyTooLargeError, UnsupportedMediaTypeError
from server.json_body import parse_json_object_async

READ_TIMEOUT_S = 60.0


async def read_json_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object in the body.

    Raises `UnsupportedMediaTypeError`, `BodyTooLargeError` (as soon as it is known, whether or not the client
    announced the length), `BodyTimeoutError`, `InvalidRequestError`, and starlette's `ClientDisconnect`.
    """
    _check_type(request)
    _check_length(int(request.headers.get("content-length") or 0), max_bytes)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            body = await _read(request, max_bytes)
    except TimeoutError:
        raise BodyTimeoutError(f"the body was not complete after {READ_TIMEOUT_S:g} s") from None
    return await parse_json_object_async(body)


async def _read(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        _check_length(len(body), max_bytes)
    return bytes(body)


def _check_length(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise BodyTooLargeError(f"the body must have at most {max_bytes} bytes, got {num_bytes} or more")


def _check_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(f"content-type must be application/json, got {content_type[:100]!r}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(f"the body must not be compressed, got content-encoding {encoding[:100]!r}")
