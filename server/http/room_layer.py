"""The layer that refuses, before anything of it is read, a request for which there is no room whatever it asks.

So a refusal costs next to nothing, however many are refused. What is counted and what is too much is the engine's
business.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from orcinus.engine.errors import QueueFullError, QuotaError
from orcinus.server.context import ServingContext
from orcinus.server.http.answers import error_response
from orcinus.server.http.rejections import count_rejection
from orcinus.server.metrics import Metrics
from orcinus.server.operations import OperationTable
from orcinus.server.requests.caller import client_of


class RoomMiddleware:
    """Stands behind the layer that knows the client, and answers 429 where there is no room."""

    def __init__(self, app: ASGIApp, context: ServingContext, operations: OperationTable, metrics: Metrics) -> None:
        self._app = app
        self._context = context
        self._operations = operations
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._operations.needs_room(scope["path"], scope["method"]):
            try:
                self._context.check_room(client_of(scope))
            except (QueueFullError, QuotaError) as error:
                count_rejection(self._metrics, error, {})
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)
