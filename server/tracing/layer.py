"""The layer that traces requests which generate, whatever becomes of them: refused, failed, aborted or answered.

Stands inside the layer that gives requests their id, and around all that may answer them.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orcinus.config.log_lines import log_fields
from orcinus.server.operations import GenerationOperation, OperationTable
from orcinus.server.requests.caller import client_address
from orcinus.server.tracing.request_trace import RequestTrace
from orcinus.server.tracing.tracer import Tracing

_STATE = "trace"


def trace_of(scope: Scope) -> RequestTrace | None:
    """Return the trace of a request, if it is traced."""
    trace: RequestTrace | None = scope.get("state", {}).get(_STATE)
    return trace


class TraceMiddleware:
    """Leaves the trace in the state of the request."""

    def __init__(
        self, app: ASGIApp, tracing: Tracing, operations: OperationTable, model_names: tuple[str, ...]
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._operations = operations
        self._model_names = model_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._operations.at(scope["path"]) if scope["type"] == "http" else None
        if not isinstance(operation, GenerationOperation) or scope["method"] not in operation.methods:
            await self._app(scope, receive, send)
            return
        trace = self._tracing.begin(
            scope,
            operation,
            client=client_address(scope),
            model_names=self._model_names,
            fields=log_fields(),
        )
        scope["state"][_STATE] = trace
        status: int | None = None
        is_complete = False

        async def send_noting(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                is_complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            trace.end(status, is_complete=is_complete)
