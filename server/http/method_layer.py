"""The layer that answers what no operation does: a path that does not exist, and a method that a path does not have.
HEAD it makes a GET; uvicorn sends no body in answer to it.

Knows the table of endpoints, and nothing of what they do.
"""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from orcinus.server.http.answers import error_response
from orcinus.server.http.metrics_port import is_served_here
from orcinus.server.operations import Operation, OperationTable

MAX_SHOWN_CHARS = 200


class MethodMiddleware:
    """Stands behind the layer that knows the keys: without one it cannot be found out which paths there are."""

    def __init__(self, app: ASGIApp, operations: OperationTable, *, has_metrics_port: bool = False) -> None:
        self._app = app
        self._operations = operations
        self._has_metrics_port = has_metrics_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        operation = self._operations.at(scope["path"])
        if operation is None or not is_served_here(operation, scope, has_metrics_port=self._has_metrics_port):
            await error_response(self._unknown_url(scope), scope)(scope, receive, send)
        elif scope["method"] not in operation.allowed_methods:
            await error_response(_wrong_method(scope, operation), scope)(scope, receive, send)
        elif scope["method"] == "HEAD":
            scope["state"]["is_head"] = True  # for answers without an end
            await self._app({**scope, "method": "GET"}, receive, send)
        else:
            await self._app(scope, receive, send)

    def _unknown_url(self, scope: Scope) -> HTTPException:
        message = f"unknown request URL: {scope['method']} {_shown(scope['path'])}"
        if (likely := self._operations.likely_path(scope["path"])) is None:
            return HTTPException(404, f"{message}; /docs lists the paths that there are")
        hint = f"{message}; did you mean {_shown(likely)}?"
        if likely.startswith("/v1/"):
            hint += " A base URL ends with /v1 for clients of OpenAI's API, and without it for clients of Anthropic's"
        return HTTPException(404, hint)


def _wrong_method(scope: Scope, operation: Operation) -> HTTPException:
    allowed = ", ".join(operation.allowed_methods)
    message = f"{_shown(scope['path'])} takes {allowed}, got {scope['method'][:20]}"
    return HTTPException(405, message, {"allow": allowed})


def _shown(path: str) -> str:
    return ascii(path)[1:-1][:MAX_SHOWN_CHARS]
