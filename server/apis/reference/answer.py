"""GET /openapi.json, /docs and the files of that page: the API reference, which needs nothing outside this server.

The page is Swagger UI, whose files come with the package `fastapi_offline`. Knows nothing of what is in the document.
"""

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

SCRIPT, STYLE, START = "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js"

_PAGE_HEADERS = {
    # Swagger UI writes styles into its elements, and has pictures in its style sheet.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_FILE_HEADERS = {"cache-control": "max-age=3600", "x-content-type-options": "nosniff"}
_OWN = Path(__file__).parent
_PAGE = (_OWN / "docs.html").read_bytes()


class Document(Response):
    """The OpenAPI document of an app. It is made when first asked for, in a thread: that takes a tenth of a second."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = await asyncio.to_thread(lambda: msgspec.json.encode(self._app.openapi()))
        await Response(content, media_type="application/json")(scope, receive, send)


def document(request: Request) -> Response:
    """Return the OpenAPI document of the app."""
    return Document(request.app)


def reference_page(request: Request) -> Response:
    """Return the page that shows the document."""
    return Response(_PAGE, headers=_PAGE_HEADERS, media_type="text/html")


def reference_file(path: str) -> Callable[[Request], Response]:
    """Return what answers with one of the page's files: our own, or Swagger UI's of the same name."""
    name = path.rpartition("/")[2]
    file = _OWN / name if path == START else _swagger_ui() / name

    def respond(request: Request) -> Response:
        return FileResponse(file, headers=_FILE_HEADERS)

    return respond


def _swagger_ui() -> Path:
    """Return where the files of Swagger UI are, without importing the package."""
    spec = find_spec("fastapi_offline")
    assert spec is not None, "it is one of our dependencies"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "static"
