"""From an operation of the table to the function that answers its requests, and to its place in the app.

A body is read and the work begun within the bounds of `server.http.preparation`; from then on the engine has the
request. Knows HTTP and the kinds of operations, and none of them by name.
"""

import dataclasses
from collections.abc import Awaitable, Callable

from fastapi import Request, Response

from orcinus.server.apis.generation import StreamableGeneration
from orcinus.server.apis.json_pieces import write_blocks
from orcinus.server.caller_key import check_admin
from orcinus.server.context import ServingContext
from orcinus.server.errors import speaks_anthropic
from orcinus.server.http.answers import EventStream, JsonAnswer, WholeAnswer, json_response
from orcinus.server.http.preparation import Preparation
from orcinus.server.operations import (
    AdminOperation,
    BodyOperation,
    GenerationOperation,
    LookupOperation,
    Operation,
    PageOperation,
)
from orcinus.server.requests.caller import Caller, read_caller
from orcinus.server.requests.left_out import collecting_left_out
from orcinus.server.tracing.layer import trace_of
from orcinus.server.tracing.request_trace import RequestTrace

Handler = Callable[[Request], Awaitable[Response]]


class OperationHandlers:
    """Makes the handler of each operation. `keep_alive_s` is how long a stream may be silent."""

    def __init__(self, context: ServingContext, preparation: Preparation, keep_alive_s: float) -> None:
        self._context = context
        self._preparation = preparation
        self._keep_alive_s = keep_alive_s

    def handler(self, operation: Operation) -> Handler:
        """Return what answers a request of this operation, or raises what `server.errors` has a row for."""
        match operation:
            case GenerationOperation():
                return self._generation_handler(operation)
            case BodyOperation():
                return self._body_handler(operation)
            case LookupOperation():
                return self._lookup_handler(operation)
            case AdminOperation():
                return self._admin_handler(operation)
            case PageOperation():
                return self._page_handler(operation)
            case _:
                raise AssertionError(f"an operation of no kind: {operation}")

    def _generation_handler(self, operation: GenerationOperation) -> Handler:
        async def generate(request: Request) -> Response:
            trace = trace_of(request.scope)
            async with self._preparation.prepare_generation(request) as (body, caller):
                if trace is not None:
                    trace.on_body(body)
                with collecting_left_out(is_lenient=self._context.is_lenient) as left_out:
                    generation = await operation.start(self._context, body, _with_trace(caller, trace))
            if trace is not None:
                trace.on_admitted(generation)
            request.state.answer_id = generation.request.request_id
            request.state.left_out = left_out.header()
            if isinstance(generation, StreamableGeneration) and generation.is_streamed:
                return EventStream(generation, self._keep_alive_s)
            return WholeAnswer(generation)

        return generate

    def _body_handler(self, operation: BodyOperation) -> Handler:
        async def respond(request: Request) -> Response:
            async with self._preparation.prepare(request, read_caller(request.scope)) as body:
                with collecting_left_out(is_lenient=self._context.is_lenient) as left_out:
                    answer = await operation.work(self._context, body)
            request.state.left_out = left_out.header()
            return JsonAnswer(await write_blocks(answer))

        return respond

    def _lookup_handler(self, operation: LookupOperation) -> Handler:
        async def look_up(request: Request) -> Response:
            is_anthropic = speaks_anthropic(request.scope["path"], request.scope["headers"])
            work = (is_anthropic and operation.anthropic_look_up) or operation.look_up
            return json_response(work(self._context, **request.path_params))

        return look_up

    def _admin_handler(self, operation: AdminOperation) -> Handler:
        async def respond(request: Request) -> Response:
            check_admin()
            return json_response(await operation.work(request))

        return respond

    def _page_handler(self, operation: PageOperation) -> Handler:
        async def respond(request: Request) -> Response:
            return operation.respond(request)

        return respond


def _with_trace(caller: Caller, trace: RequestTrace | None) -> Caller:
    """Return who asks, with whoever is to be told when what became of each choice."""
    return caller if trace is None else dataclasses.replace(caller, on_choice_end=trace.on_choice_end)
