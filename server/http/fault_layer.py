"""The layer that catches what nobody expected: the log has it, and the client gets a 500 that says nothing of it."""

import logging

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orcinus.server.http.answers import error_response

logger = logging.getLogger("orcinus.server.access")


class FaultMiddleware:
    """Stands inside the layers that add headers to every answer. A response that has begun can only be cut off."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("request %s failed", scope["state"]["request_id"])
            if not has_begun:
                await error_response(RuntimeError(), scope)(scope, receive, send)
