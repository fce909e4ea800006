"""The FastAPI app: routes, layers, and the task that listens to the engine. What the routes do lies elsewhere.

It answers from the moment it listens: /live is green at once, everything that needs the model is a 503 until the
engine has loaded it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from orcinus.config.settings import Settings
from orcinus.config.version import VERSION
from orcinus.engine.errors import OrcinusError
from orcinus.server.apis.chat.answer import start_chat_completion
from orcinus.server.apis.chat.body import ChatBody
from orcinus.server.apis.completions.answer import start_completion
from orcinus.server.apis.completions.body import CompletionBody
from orcinus.server.apis.embeddings.answer import start_embeddings
from orcinus.server.apis.embeddings.body import EmbeddingBody
from orcinus.server.apis.generation import Generation, StreamableGeneration
from orcinus.server.apis.messages.answer import count_tokens, start_message
from orcinus.server.apis.messages.body import MessagesBody
from orcinus.server.apis.responses.answer import start_response
from orcinus.server.apis.responses.body import ResponseBody
from orcinus.server.apis.tokens import answer as tokenization
from orcinus.server.apis.tokens.body import DetokenizeBody, TokenizeBody
from orcinus.server.context import ServingContext, ServingEngine
from orcinus.server.http.answers import EventStream, WholeAnswer, error_response, json_response
from orcinus.server.http.auth import AuthMiddleware, KeyRing
from orcinus.server.http.body import BodyReader
from orcinus.server.http.request_layer import RequestMiddleware
from orcinus.server.http.room_layer import RoomMiddleware
from orcinus.server.metrics import Metrics
from orcinus.server.openapi import describe_body, describe_text, install_schemas
from orcinus.server.requests.caller import Caller, read_caller

logger = logging.getLogger(__name__)

Start = Callable[[ServingContext, Mapping[str, Any], Caller], Awaitable[Generation]]
Answer = Callable[[ServingContext, Mapping[str, Any]], Awaitable[dict[str, Any]]]


def create_app(engine: ServingEngine, settings: Settings) -> FastAPI:
    """The app that serves `engine`, whose `start` the caller has called; its lifespan runs and closes the engine.

    Sets `engine.observer`. `app.state` has `context`, `metrics` and, once it runs, `reading`: the task of `engine.run`.
    Raises `OSError` if the key file cannot be read.
    """
    metrics = Metrics()
    engine.observer = metrics
    context = ServingContext(engine, settings)
    app = FastAPI(
        title="Orcinus",
        version=VERSION,
        description="An OpenAI-compatible LLM inference server with continuous batching.",
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.context = context
    app.state.metrics = metrics
    _add_first_page(app)
    _add_probes(app, context, metrics)
    _add_models(app, context)
    bodies = BodyReader(settings.max_body_bytes)
    _add_operations(app, context, settings, bodies)
    _add_layers(app, metrics, bodies, KeyRing(settings), context)
    install_schemas(
        app,
        (CompletionBody, ChatBody, ResponseBody, MessagesBody, EmbeddingBody, TokenizeBody, DetokenizeBody),
        is_key_needed=settings.is_key_needed,
    )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: ServingContext = app.state.context
    reading = app.state.reading = asyncio.create_task(context.engine.run(), name="engine messages")
    announcing = asyncio.create_task(_announce(context, app.state.metrics), name="engine ready")
    try:
        yield
    finally:
        await context.engine.aclose()
        announcing.cancel()
        await asyncio.gather(reading, announcing, return_exceptions=True)


async def _announce(context: ServingContext, metrics: Metrics) -> None:
    try:
        metrics.on_ready(await context.engine.wait_ready(), context.model_name)
    except OrcinusError as error:
        logger.debug("the engine did not start: %s", error)


def _add_first_page(app: FastAPI) -> None:
    page = (Path(__file__).parent / "welcome.html").read_bytes()
    headers = {"content-security-policy": "default-src 'self' 'unsafe-inline'; img-src data:; frame-ancestors 'none'"}

    @app.get("/", include_in_schema=False)
    async def first_page() -> Response:
        return Response(page, headers=headers, media_type="text/html")


def _add_probes(app: FastAPI, context: ServingContext, metrics: Metrics) -> None:
    @app.get("/live", tags=["operations"], summary="Whether the process answers")
    async def live() -> Response:
        return json_response({"status": "live"})

    async def ready() -> Response:
        context.check_ready()
        return json_response({"status": "ready"})

    app.head("/live", include_in_schema=False)(live)
    for path in ("/ready", "/health"):
        app.head(path, include_in_schema=False)(ready)
        app.get(path, tags=["operations"], summary="Whether new requests are taken")(ready)

    @app.get("/version", tags=["operations"], summary="The version of the server")
    async def version() -> Response:
        return json_response({"version": VERSION})

    @app.get(
        "/metrics",
        tags=["operations"],
        summary="Metrics for Prometheus",
        response_class=PlainTextResponse,
        openapi_extra=describe_text("text/plain", "application/openmetrics-text"),
    )
    async def exposition(request: Request) -> Response:
        text, content_type = metrics.exposition(request.headers.get("accept"))
        return Response(text, headers={"content-type": content_type})


def _add_models(app: FastAPI, context: ServingContext) -> None:
    @app.get("/v1/models", tags=["models"], summary="The names that are served")
    async def list_models() -> Response:
        return json_response({"object": "list", "data": [context.describe(name) for name in context.model_names]})

    @app.get("/v1/models/{model:path}", tags=["models"], summary="One of them")
    async def retrieve_model(model: str) -> Response:
        context.check_model(model)
        return json_response(context.describe(model))


def _add_operations(app: FastAPI, context: ServingContext, settings: Settings, bodies: BodyReader) -> None:
    async def generate(request: Request, start: Start) -> Response:
        caller = read_caller(request.scope)
        async with context.intake.enter():
            body = await bodies.read_json_object(request)
            generation = await start(context, body, caller)
        request.state.answer_id = generation.request.request_id
        if isinstance(generation, StreamableGeneration) and generation.is_streamed:
            return EventStream(generation, settings.keep_alive_s)
        return WholeAnswer(generation)

    async def answer(request: Request, operation: Answer) -> Response:
        async with context.intake.enter():
            body = await bodies.read_json_object(request)
            return json_response(await operation(context, body))

    @app.post(
        "/v1/completions",
        tags=["generation"],
        openapi_extra=describe_body(CompletionBody, "Completion", is_streamed=True),
    )
    async def completions(request: Request) -> Response:
        return await generate(request, start_completion)

    @app.post(
        "/v1/chat/completions",
        tags=["generation"],
        openapi_extra=describe_body(ChatBody, "ChatCompletion", is_streamed=True),
    )
    async def chat_completions(request: Request) -> Response:
        return await generate(request, start_chat_completion)

    @app.post(
        "/v1/responses", tags=["generation"], openapi_extra=describe_body(ResponseBody, "Response", is_streamed=True)
    )
    async def responses(request: Request) -> Response:
        return await generate(request, start_response)

    @app.api_route("/v1/responses/{response_id:path}", methods=["GET", "DELETE"], include_in_schema=False)
    async def stored_response(response_id: str) -> Response:
        raise HTTPException(404, f"no response {response_id[:100]!r}: responses are not stored here")

    @app.post(
        "/v1/messages",
        tags=["generation"],
        openapi_extra=describe_body(MessagesBody, "Message", is_streamed=True),
    )
    async def messages(request: Request) -> Response:
        return await generate(request, start_message)

    @app.post(
        "/v1/messages/count_tokens",
        tags=["tokens"],
        openapi_extra=describe_body(MessagesBody, "MessageTokens"),
    )
    async def message_tokens(request: Request) -> Response:
        return await answer(request, count_tokens)

    @app.post("/v1/embeddings", tags=["embeddings"], openapi_extra=describe_body(EmbeddingBody, "Embeddings"))
    async def embeddings(request: Request) -> Response:
        return await generate(request, start_embeddings)

    @app.post("/tokenize", tags=["tokens"], openapi_extra=describe_body(TokenizeBody, "Tokens"))
    async def tokenize(request: Request) -> Response:
        return await answer(request, tokenization.tokenize)

    @app.post("/detokenize", tags=["tokens"], openapi_extra=describe_body(DetokenizeBody, "Text"))
    async def detokenize(request: Request) -> Response:
        return await answer(request, tokenization.detokenize)


def _add_layers(app: FastAPI, metrics: Metrics, bodies: BodyReader, keys: KeyRing, context: ServingContext) -> None:
    """The first of the list is the outermost: a refused key too gets an id, a line in the log and a count."""
    routes = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    routes = frozenset(path.replace(":path", "") for path in routes)
    app.user_middleware[:] = [
        Middleware(RequestMiddleware, metrics=metrics, routes=routes, bodies=bodies),
        Middleware(AuthMiddleware, keys=keys),
        Middleware(RoomMiddleware, context=context),
    ]

    async def respond(request: Request, error: Exception) -> Response:
        return error_response(error, request.scope)

    for kind in (OrcinusError, HTTPException):
        app.add_exception_handler(kind, respond)
