"""The layer that takes the path off under which a proxy publishes the server, where the proxy does not.

All other layers see the paths of the table alone. What this server writes into its pages is relative to them.
"""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class RootPathMiddleware:
    """The outermost layer. `root_path` is "" or begins with a slash and does not end with one."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._root_path or scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == self._root_path:  # without a slash the page's links would lead elsewhere
            query = scope["query_string"].decode("latin-1")
            await RedirectResponse(f"{self._root_path}/{query and '?' + query}", 308)(scope, receive, send)
        elif scope["path"].startswith(self._root_path + "/"):
            await self._app({**scope, "path": scope["path"][len(self._root_path) :]}, receive, send)
        else:
            await self._app(scope, receive, send)
