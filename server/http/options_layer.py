"""The layer that answers `OPTIONS *`, a question about the server as a whole (RFC 9110, 9.3.7): a ping that tells which
methods there are.
"""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from orcinus.server.http.targets import SERVER_TARGET
from orcinus.server.operations import OperationTable


class ServerOptionsMiddleware:
    """Stands before the layer that knows the keys: nothing is said of any path."""

    def __init__(self, app: ASGIApp, operations: OperationTable) -> None:
        self._app = app
        methods = dict.fromkeys(method for row in operations for method in row.allowed_methods)
        self._allowed = ", ".join([*methods, "OPTIONS"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("OPTIONS", SERVER_TARGET):
            await Response(status_code=204, headers={"allow": self._allowed})(scope, receive, send)
            return
        await self._app(scope, receive, send)
