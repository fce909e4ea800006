"""Reading a request's body: its type, its size and the time it takes are checked before and while it comes in, and so
is what the bodies of all requests, and those of one client, take together."""

import asyncio
from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from orcinus.engine.errors import QueueFullError, QuotaError
from orcinus.server.errors import BodyTimeoutError, BodyTooLargeError, UnsupportedMediaTypeError
from orcinus.server.http.json_body import JsonReader
from orcinus.server.requests.caller import client_of

READ_TIMEOUT_S = 60.0
MAX_FULL_BODIES = 32  # of the largest size at once; of smaller ones so many more
_CLIENT_SHARE = 2  # one of several clients may have half of them


class BodyReader:
    """Bodies of at most `max_bytes`. What one takes counts until `release`, because a request keeps its body."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_total = MAX_FULL_BODIES * max_bytes
        self._total = 0
        self._totals = Counter[str]()  # by client
        self._json = JsonReader()

    async def read_json_object(self, request: Request) -> dict[str, Any]:
        """Return the JSON object in the body.

        Raises `UnsupportedMediaTypeError`, `BodyTooLargeError` (as soon as it is known, whether or not the client
        announced the length), `BodyTimeoutError`, `QueueFullError`, `QuotaError`, `InvalidRequestError`, and
        starlette's `ClientDisconnect`.
        """
        _check_type(request)
        self._check_length(int(request.headers.get("content-length") or 0))
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                body = await self._read(request)
        except TimeoutError:
            raise BodyTimeoutError(f"the body was not complete after {READ_TIMEOUT_S:g} s") from None
        return await self._json.parse_object(body)

    def release(self, scope: Scope) -> None:
        """Count the bytes of a request's body no more: it is over."""
        if num_bytes := scope["state"].pop("num_body_bytes", 0):
            self._count(client_of(scope), -num_bytes)

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            self._check_length(len(body))
            self._take(request.scope, len(chunk))
        return bytes(body)

    def _take(self, scope: Scope, num_bytes: int) -> None:
        client = client_of(scope)
        self._count(client, num_bytes)
        scope["state"]["num_body_bytes"] = scope["state"].get("num_body_bytes", 0) + num_bytes
        if self._total > self._max_total:
            raise QueueFullError(f"the requests in progress may have at most {self._max_total} bytes together", 1.0)
        most = self._max_total // _CLIENT_SHARE
        if client and self._totals[client] > most:
            raise QuotaError(f"the requests of one client in progress may have at most {most} bytes together", 1.0)

    def _count(self, client: str, num_bytes: int) -> None:
        self._total += num_bytes
        self._totals[client] += num_bytes
        if not self._totals[client]:
            del self._totals[client]

    def _check_length(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise BodyTooLargeError(f"the body must have at most {self._max_bytes} bytes, got {num_bytes} or more")


def _check_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(f"content-type must be application/json, got {content_type[:100]!r}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(f"the body must not be compressed, got content-encoding {encoding[:100]!r}")
