"""The layers that take the path off under which a proxy publishes the server, where the proxy does not.

All see the paths of the table alone, the layers around them too once the first has run. What this server writes into
its pages is relative to them.
"""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_IS_ROOT = "is_root_path"  # in the state of a request for the path itself, which the second layer answers


class RootPathMiddleware:
    """Stands before all layers that ask which path it is.

    `root_path` is "" or begins with a slash and does not end with one.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root_path and scope["type"] == "http":
            if scope["path"] == self._root_path:
                scope["state"][_IS_ROOT] = True
            elif scope["path"].startswith(self._root_path + "/"):
                scope["path"] = scope["path"][len(self._root_path) :]  # no copy: the layers around this one use it, too
        await self._app(scope, receive, send)


class RootRedirectMiddleware:
    """Leads from the path itself to the page. Stands inside the layers that add something to every answer."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["state"].get(_IS_ROOT):  # without a slash the page's links lead elsewhere
            query = scope["query_string"].decode("latin-1")
            await RedirectResponse(f"{self._root_path}/{query and '?' + query}", 308)(scope, receive, send)
            return
        await self._app(scope, receive, send)
