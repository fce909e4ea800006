"""Clients of every manner: who reads all, who reads slowly, who leaves, who has no time, and who speaks no HTTP.

Each gives one `Outcome` and never raises. Knows nothing of what is right.
"""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from tests.chaos.accounting import Outcome
from tests.chaos.answers import Answer
from tests.chaos.bad_input import BAD_INPUTS, GARBAGE
from tests.chaos.bodies import Ask, Body
from tests.chaos.plan import Request
from tests.chaos.reading import UnreadableError, new_reader, read_json, read_whole

READ_TIMEOUT_S = 180.0  # an answer that takes longer counts as lost
_SLOW_READ_S = 0.02
_GARBAGE_TIMEOUT_S = 40.0
_BROKEN = (httpx.HTTPError, UnreadableError, OSError)
_INCOMPLETE = (LookupError, TypeError)  # an answer in which something is missing


@dataclass(frozen=True, slots=True)
class _Answered:
    """A response whose body was read as JSON."""

    response: httpx.Response
    found: dict[str, Any]


class Clients:
    """All clients of one server, which share their connections as a proxy's would."""

    def __init__(self, url: str, keys: Sequence[str], catalogue: Sequence[Ask]) -> None:
        self._url = url
        self._keys = keys
        self._catalogue = catalogue
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(READ_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def perform(self, request: Request) -> Outcome:
        try:
            match request.manner:
                case "garbage":
                    return await self._speak_garbage(request)
                case "bad":
                    return await self._ask_wrongly(request)
                case "leave whole":
                    return await self._leave_early(request)
                case "whole":
                    return await self._read_whole(request)
                case "deadline" | "deadline header" if request.number % 2:
                    return await self._read_whole(request)
                case _:
                    return await self._read_stream(request)
        except (*_BROKEN, *_INCOMPLETE) as error:
            return Outcome(request, trouble=f"{type(error).__name__}: {error}")

    async def ask_twin(self, ask: Ask) -> Answer:
        """The answer of a server that nobody disturbs."""
        response = await self._http.post(ask.path, json=ask.body, headers=self._key(0))
        assert response.status_code == 200, f"{ask}: {response.status_code} {response.text[:500]}"
        return read_whole(ask.path, read_json(response.content))

    def _ask(self, request: Request) -> Ask:
        return self._catalogue[request.target]

    def _key(self, key: int) -> dict[str, str]:
        return {"authorization": f"Bearer {self._keys[key]}"}

    def _headers(self, request: Request) -> dict[str, str]:
        deadline = {"x-request-timeout": str(request.patience)} if request.manner == "deadline header" else {}
        return {**self._key(request.key), **deadline}

    async def _read_whole(self, request: Request) -> Outcome:
        ask = self._ask(request)
        asked = {**ask.body, **_deadline(request)}
        response = await self._http.post(ask.path, json=asked, headers=self._headers(request))
        found = read_json(response.content)
        if response.status_code != 200:
            return _refused(request, _Answered(response, found))
        return Outcome(request, 200, read_whole(ask.path, found), is_complete=True)

    async def _read_stream(self, request: Request) -> Outcome:
        ask = self._ask(request)
        asked, headers = {**ask.streamed, **_deadline(request)}, self._headers(request)
        async with self._http.stream("POST", ask.path, json=asked, headers=headers) as response:
            if response.status_code != 200:
                return _refused(request, _Answered(response, read_json(await response.aread())))
            reader, has_left = new_reader(ask.path), False
            async for line in response.aiter_lines():
                reader.feed(line)
                if request.manner == "leave stream" and reader.num_events >= request.patience and not reader.is_done:
                    has_left = True
                    break
                if request.manner == "slow stream":
                    await asyncio.sleep(_SLOW_READ_S)
        is_complete = reader.is_done and reader.error is None
        trouble = "the stream broke off" if not reader.is_done and not has_left else None
        return Outcome(request, 200, reader.answer, is_complete, reader.error, has_left=has_left, trouble=trouble)

    async def _leave_early(self, request: Request) -> Outcome:
        try:
            async with asyncio.timeout(request.patience):
                return await self._read_whole(request)
        except TimeoutError:
            return Outcome(request, has_left=True)

    async def _ask_wrongly(self, request: Request) -> Outcome:
        bad = BAD_INPUTS[request.target]
        key = self._key(request.key) if bad.has_key else {}
        response = await self._http.post(bad.path, content=bad.content, headers={**key, **bad.headers})
        return _refused(request, _Answered(response, read_json(response.content)))

    async def _speak_garbage(self, request: Request) -> Outcome:
        address = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        answer = b""
        try:
            writer.write(GARBAGE[request.target])
            async with asyncio.timeout(_GARBAGE_TIMEOUT_S):
                answer = await reader.read()
        except ConnectionError:
            pass  # as good an answer as any
        except TimeoutError:
            return Outcome(request, trouble=f"garbage was borne for {_GARBAGE_TIMEOUT_S:g} s")
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return Outcome(request, int(answer.split(maxsplit=2)[1]) if answer.startswith(b"HTTP/1.1 ") else None)


def _deadline(request: Request) -> Body:
    return {"timeout": request.patience} if request.manner == "deadline" else {}


def _refused(request: Request, answered: _Answered) -> Outcome:
    return Outcome(
        request,
        answered.response.status_code,
        error=answered.found.get("error"),
        error_bytes=len(answered.response.content),
        retry_after=answered.response.headers.get("retry-after"),
    )


def describe(request: Request, catalogue: Sequence[Ask]) -> str:
    """The request in a line, so that it can be asked again by hand."""
    match request.manner:
        case "bad":
            what = BAD_INPUTS[request.target].name
        case "garbage":
            what = repr(GARBAGE[request.target][:40])
        case _:
            ask = catalogue[request.target]
            what = f"{ask.kind}: {ask.path} {json.dumps(ask.body)[:400]}"
    return f"request {request.number} ({request.manner}, patience {request.patience:g}) {what}"
