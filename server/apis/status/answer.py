"""GET /live, /ready, /health, /version, /metrics and /: what the server says of itself.

Knows the state of the engine as far as `ServingContext` tells it. What is measured, and how, is `server.metrics`' part.
"""

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from orcinus.config.version import VERSION
from orcinus.server.context import ServingContext
from orcinus.server.metrics import Metrics

_PAGE = Path(__file__).with_name("welcome.html").read_bytes()


def _hash_of(element: bytes) -> str:
    """Return how a content security policy names what stands in this element of the page."""
    content = _PAGE.partition(b"<%b>" % element)[2].partition(b"</%b>" % element)[0]
    return f"'sha256-{b64encode(sha256(content).digest()).decode()}'"


_PAGE_HEADERS = {
    "content-security-policy": f"default-src 'self'; script-src {_hash_of(b'script')}; style-src {_hash_of(b'style')}; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def live(ctx: ServingContext) -> dict[str, Any]:
    """Say that the process answers, whatever the engine does."""
    return {"status": "live"}


def ready(ctx: ServingContext) -> dict[str, Any]:
    """Say that a new request would run now. Raises `EngineUnavailableError` where it would not."""
    ctx.check_ready()
    return {"status": "ready"}


def version(ctx: ServingContext) -> dict[str, Any]:
    """Return the version of the server."""
    return {"version": VERSION}


def first_page(request: Request) -> Response:
    """Return the page for people. It refers to nothing outside this server, and asks for a key where one is needed."""
    return Response(_PAGE, headers=_PAGE_HEADERS, media_type="text/html")


def exposition(request: Request) -> Response:
    """Return the app's metrics in the format that the scraper accepts."""
    metrics: Metrics = request.app.state.metrics
    text, content_type = metrics.exposition(request.headers.get("accept"))
    return Response(text, headers={"content-type": content_type})
