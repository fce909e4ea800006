"""GET /live, /ready, /health, /version and /metrics: what the server says of itself.

Knows the state of the engine as far as `ServingContext` tells it. What is measured, and how, is `server.metrics`' part.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from orcinus.config.version import VERSION
from orcinus.server.context import ServingContext
from orcinus.server.metrics import Metrics


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


def exposition(request: Request) -> Response:
    """Return the app's metrics in the format that the scraper accepts."""
    metrics: Metrics = request.app.state.metrics
    text, content_type = metrics.exposition(request.headers.get("accept"))
    return Response(text, headers={"content-type": content_type})
