"""The layer that takes the path off under which a proxy publishes the server, where the proxy does not.

All see the paths of the table alone, the layers around it too once it has run. What this server writes into its pages
is relative to them.
"""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class RootPathMiddleware:
    """Stands inside the layers that add something to every answer, before all that ask which path it is.

    `root_path` is "" or begins with a slash and does not end with one.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._root_path or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == self._root_path:  # without a slash the page's links would lead elsewhere
            query = scope["query_string"].decode("latin-1")
            await RedirectResponse(f"{self._root_path}/{query and '?' + query}", 308)(scope, receive, send)
            return
        if scope["path"].startswith(self._root_path + "/"):
            scope["path"] = scope["path"][len(self._root_path) :]  # no copy: the layers around this one use it, too
        await self._app(scope, receive, send)
