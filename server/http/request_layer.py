"""The layer around every HTTP request: its id, its line in the log and its metrics.

Pure ASGI, so that the client's leaving reaches the routes.
"""

import logging
import re
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orcinus.config.log_lines import begin_log_fields
from orcinus.server.errors import speaks_anthropic
from orcinus.server.http.body import BodyReader
from orcinus.server.http.throttled_log import ThrottledLog
from orcinus.server.metrics import Metrics
from orcinus.server.operations import OTHER, OperationTable
from orcinus.server.requests.caller import client_address
from orcinus.server.requests.left_out import HEADER as LEFT_OUT_HEADER
from orcinus.server.tracing.parents import trace_id_of

logger = logging.getLogger("orcinus.server.access")

CLIENT_LEFT = 499  # in the log and the metrics; never sent
TOO_MANY = 429

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestMiddleware:
    """Stands around everything."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        operations: OperationTable,
        bodies: BodyReader,
        throttled_log: ThrottledLog,
    ) -> None:
        self._app = app
        self._bodies = bodies
        self._metrics = metrics
        self._operations = operations
        self._throttled_log = throttled_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        self._metrics.on_http_start()
        try:
            await self._app(scope, receive, exchange.send)
        except ClientDisconnect:
            pass
        finally:
            self._bodies.release(scope)
            route, method = self._labels(scope)
            self._metrics.on_http_end(route, method, exchange.status, exchange.duration_s)
            exchange.log(is_quiet=exchange.status == TOO_MANY or self._operations.is_polled(scope["path"]))
            if exchange.status == TOO_MANY:
                self._throttled_log.count(f"requests refused with {TOO_MANY}")

    def _labels(self, scope: Scope) -> tuple[str, str]:
        return self._operations.label(scope["path"]), scope["method"] if scope["method"] in _METHODS else OTHER


class _Exchange:
    """One request and what was answered.

    A route may leave `answer_id` in the state, what the engine's log calls it, and `left_out`, what was passed over;
    the layer that knows the keys leaves `key_name`.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._started = time.perf_counter()
        self.status = CLIENT_LEFT
        self.request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = self.request_id
        trace_id = trace_id_of(scope)
        begin_log_fields(request_id=self.request_id, **({} if trace_id is None else {"trace_id": trace_id}))

    @property
    def duration_s(self) -> float:
        return time.perf_counter() - self._started

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), *self._id_headers(), *self._left_out_header()]
        await self._send(message)

    def _id_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the id by each name that the client may look for: Anthropic's clients have one of their own."""
        is_anthropic = speaks_anthropic(self._scope["path"], self._scope["headers"])
        names = (b"x-request-id", b"request-id") if is_anthropic else (b"x-request-id",)
        return [(name, self.request_id.encode()) for name in names]

    def _left_out_header(self) -> list[tuple[bytes, bytes]]:
        """Return what tells the client which parts of its request were passed over, if any were."""
        places = self._scope["state"].get("left_out")
        return [(LEFT_OUT_HEADER.encode(), places.encode())] if places else []

    def log(self, *, is_quiet: bool) -> None:
        level = logging.DEBUG if is_quiet else logging.INFO
        if not logger.isEnabledFor(level):
            return
        method, path = ascii(self._scope["method"])[1:-1], ascii(self._scope["path"])[1:-1][:200]
        client, answer_id = client_address(self._scope) or "-", self._scope["state"].get("answer_id")
        key_name = self._scope["state"].get("key_name")
        fields = {
            "method": method,
            "path": path,
            "status": self.status,
            "duration_ms": round(self.duration_s * 1000, 1),
            "client": client,
            **({} if answer_id is None else {"answer_id": answer_id}),
            **({"key": key_name} if key_name else {}),
        }
        logger.log(
            level,
            "%s %s %d %.1f ms id=%s%s client=%s%s",
            method,
            path,  # both with what would break the line escaped
            self.status,
            self.duration_s * 1000,
            self.request_id,
            "" if answer_id is None else f" answer={answer_id}",
            client,
            f" key={key_name}" if key_name else "",
            extra={"fields": fields},
        )


def _request_id(scope: Scope) -> str:
    """Return the client's own id, if it is fit for a header and a log line, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SAFE_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return secrets.token_hex(16)
