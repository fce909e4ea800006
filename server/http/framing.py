"""How an answer is framed, where uvicorn's own way does not fit: for clients of HTTP/1.0, and before a body has come.

Knows one request's cycle, as uvicorn calls it, and nothing of what is answered.
"""

from collections.abc import Callable

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_WITHOUT_BODY = (204, 304)


class FramedAnswer:
    """Passes the messages of one answer on to uvicorn's `send`.

    When the answer begins, `is_early` tells whether most of the request's body is still to come, and `is_ending`
    whether the server ends: then the connection ends, too.
    """

    def __init__(
        self,
        cycle: RequestResponseCycle,
        send: Send,
        *,
        is_early: Callable[[RequestResponseCycle], bool],
        is_ending: Callable[[], bool],
    ) -> None:
        self._cycle = cycle
        self._send = send
        self._is_early = is_early
        self._is_ending = is_ending
        self._ends_by_close = False

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            if self._ends_by_close:
                self._cycle.expected_content_length = len(message.get("body", b""))
            await self._send(message)
            return
        is_early = self._is_early(self._cycle)
        if is_early or self._is_ending():
            self._cycle.keep_alive = False
        if self._cycle.scope["http_version"] == "1.0":
            message = self._for_old_client(message)
        await self._send(message)
        if is_early:
            self._cycle.keep_alive = True  # uvicorn would close at once, and the client lose what it has not read yet

    def _for_old_client(self, message: Message) -> Message:
        """Return the start of an answer to HTTP/1.0, which knows no chunks, and keeps no connection unasked."""
        headers = list(message.get("headers", []))
        has_no_body = self._cycle.scope["method"] == "HEAD" or message["status"] in _WITHOUT_BODY
        if not has_no_body and not any(name.lower() == b"content-length" for name, _ in headers):
            self._ends_by_close = True
            self._cycle.chunked_encoding = False
            self._cycle.keep_alive = False
        elif self._cycle.keep_alive:
            headers.append((b"connection", b"keep-alive"))
        return {**message, "headers": headers}
