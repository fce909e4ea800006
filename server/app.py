"""The FastAPI app: the operations of the table, the layers in front of them, and the task that listens to the engine.

It answers from the moment it listens: /live is green at once, everything that needs the model is a 503 until the
engine has loaded it.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from orcinus.config.api_keys import key_name
from orcinus.config.settings import Settings
from orcinus.config.version import VERSION
from orcinus.engine.errors import OrcinusError
from orcinus.server.context import ServingContext, ServingEngine
from orcinus.server.exposition.cpu_energy import CpuEnergy
from orcinus.server.http.answers import error_response
from orcinus.server.http.auth import AuthMiddleware, KeyRing
from orcinus.server.http.body import BodyReader
from orcinus.server.http.fault_layer import FaultMiddleware
from orcinus.server.http.method_layer import MethodMiddleware
from orcinus.server.http.options_layer import ServerOptionsMiddleware
from orcinus.server.http.origins import OriginPolicy
from orcinus.server.http.preparation import Preparation
from orcinus.server.http.request_layer import RequestMiddleware
from orcinus.server.http.room_layer import RoomMiddleware
from orcinus.server.http.root_path import RootPathMiddleware, RootRedirectMiddleware
from orcinus.server.http.routes import Handler, OperationHandlers
from orcinus.server.http.throttled_log import ThrottledLog
from orcinus.server.metrics import Metrics
from orcinus.server.openapi import describe_operation, install_document
from orcinus.server.operations import OPERATIONS, Operation, OperationTable
from orcinus.server.tracing.layer import TraceMiddleware
from orcinus.server.tracing.tracer import Tracing, open_tracing
from orcinus.server.usage.book import UsageBook
from orcinus.server.watching.watch import Watch

logger = logging.getLogger(__name__)

_LAST_SPANS_S = 5.0
# FastAPI would make spans of its own for whatever provider the process has, beside those of the GenAI conventions.
_NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(
    engine: ServingEngine,
    settings: Settings,
    operations: OperationTable = OPERATIONS,
    *,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return the app that serves `engine`, which was started; its lifespan runs the engine and closes it.

    Without `tracing` the settings say whether requests are traced, and where to.
    Sets `engine.observer`. `app.state` has `context`, `metrics` and, once it runs, `reading`: the task of `engine.run`.
    Raises `OSError` if the key file cannot be read, and `SettingsError` if it has a key that cannot be sent, or where
    OpenTelemetry is wanted and not installed.
    """
    tracing = tracing or open_tracing(settings)
    if not settings.page:
        operations = operations.without_page()
    if settings.usage_db is None:
        operations = operations.without_admin()
    metrics = Metrics(
        settings.model_names, operations.labels(), names=settings.metrics_names, cpu_energy_j=CpuEnergy().read_j
    )
    engine.observer = metrics
    metrics.name_keys(key_name)
    context = ServingContext(engine, settings)
    keys = KeyRing(settings)
    context.limit_clients(keys.limits_of)
    app = FastAPI(
        title="Orcinus",
        version=VERSION,
        description="An OpenAI-compatible LLM inference server with continuous batching.",
        lifespan=_lifespan,
        redirect_slashes=False,
        openapi_url=None,  # the document and its page are operations like others
        telemetry=_NO_TELEMETRY,
    )
    app.state.context = context
    app.state.metrics = metrics
    app.state.watch = Watch(context, metrics)
    app.state.tracing = tracing
    app.state.keys = keys
    app.state.has_metrics_port = settings.metrics_port is not None
    if settings.usage_db is not None:
        app.state.usage = UsageBook(settings.usage_db, context.model_name)
        metrics.usage_listener = app.state.usage.add
    app.state.throttled_log = ThrottledLog()
    app.state.origins = OriginPolicy(settings.cors_allow_origin)
    bodies = BodyReader(settings.max_body_bytes)
    app.user_middleware[:] = _layers(app.state, settings, operations, bodies)
    for kind in (OrcinusError, HTTPException):
        app.add_exception_handler(kind, _respond)
    handlers = OperationHandlers(context, Preparation(context, bodies, metrics), settings.keep_alive_s)
    for operation in operations:
        _add_operation(app, operation, handlers.handler(operation))
    documented = operations if settings.metrics_port is None else operations.on_main_port()
    install_document(app, documented, is_key_needed=settings.is_key_needed, root_path=settings.root_path)
    return app


def _layers(state: State, settings: Settings, operations: OperationTable, bodies: BodyReader) -> list[Middleware]:
    """Return what requests go through on their way to the routes, and answers on their way back."""
    # The first is the outermost: a refused key too gets an id, a line in the log and a count.
    metrics: Metrics = state.metrics
    return [
        Middleware(
            RequestMiddleware,
            metrics=metrics,
            operations=operations,
            bodies=bodies,
            throttled_log=state.throttled_log,
        ),
        Middleware(RootPathMiddleware, root_path=settings.root_path),
        *_trace_layers(state.tracing, operations, settings),
        *state.origins.layers(),
        Middleware(RootRedirectMiddleware, root_path=settings.root_path),
        Middleware(FaultMiddleware),
        Middleware(ServerOptionsMiddleware, operations=operations),
        Middleware(AuthMiddleware, keys=state.keys, operations=operations),
        Middleware(MethodMiddleware, operations=operations, has_metrics_port=settings.metrics_port is not None),
        Middleware(RoomMiddleware, context=state.context, operations=operations, metrics=metrics),
    ]


def _trace_layers(tracing: Tracing | None, operations: OperationTable, settings: Settings) -> list[Middleware]:
    if tracing is None:
        return []
    names = tuple(settings.model_names)
    return [Middleware(TraceMiddleware, tracing=tracing, operations=operations, model_names=names)]


def _add_operation(app: FastAPI, operation: Operation, handler: Handler) -> None:
    app.add_api_route(
        operation.path,
        handler,
        methods=[*operation.methods],
        name=operation.name,
        tags=[operation.tag] if operation.tag else None,
        summary=operation.summary,
        include_in_schema=operation.is_documented,
        response_class=Response,
        openapi_extra=describe_operation(operation),
    )


async def _respond(request: Request, error: Exception) -> Response:
    return error_response(error, request.scope)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: ServingContext = app.state.context
    reading = app.state.reading = asyncio.create_task(context.engine.run(), name="engine messages")
    announcing = asyncio.create_task(_announce(context, app.state.metrics), name="engine ready")
    try:
        async with _keeping_usage(getattr(app.state, "usage", None)):
            yield
            await context.engine.aclose()
    finally:
        await context.engine.aclose()
        announcing.cancel()
        await asyncio.gather(reading, announcing, return_exceptions=True)
        if app.state.tracing is not None:
            await _send_last_spans(app.state.tracing)


async def _send_last_spans(tracing: Tracing) -> None:
    """Send what is left, unless that takes too long: a collector that is gone must not keep the server."""
    sending = threading.Thread(target=tracing.close, name="send the last spans", daemon=True)
    sending.start()
    await asyncio.to_thread(sending.join, _LAST_SPANS_S)
    if sending.is_alive():
        logger.warning("the last spans were not sent within %g s", _LAST_SPANS_S)


@asynccontextmanager
async def _keeping_usage(book: UsageBook | None) -> AsyncIterator[None]:
    """Have usage written in the block, and what is left of it after it."""
    if book is None:
        yield
        return
    keeping = asyncio.create_task(book.keep(), name="keep usage")
    try:
        yield
    finally:
        await book.close(keeping)


async def _announce(context: ServingContext, metrics: Metrics) -> None:
    try:
        metrics.on_ready(await context.engine.wait_ready(), context.model_name)
    except OrcinusError as error:
        logger.debug("the engine did not start: %s", error)
