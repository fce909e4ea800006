"""The spans of one request: that of the server, and where its time went inside, choice by choice.

The conventions have names for the outer one; the inner ones are ours: `prepare` (from the head to admission), `queue`,
`prefill`, `decode`, and `preemption` and `restart` where those happened. Their times are what the engine reported, by
the clock that both processes share. Knows the API of OpenTelemetry, and not where spans are sent.
"""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from orcinus.engine.outputs import ChoiceTimes
from orcinus.server.apis.generation import Generation
from orcinus.server.errors import kind_of
from orcinus.server.tracing.attributes import Value, http_attributes, operation_attributes, plain, request_attributes

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

MAX_CHOICES = 16  # whose parts have spans: a request may have thousands, and each takes a tenth of a millisecond
_WITHOUT_OUTPUT = frozenset({"embeddings", "rerank", "score"})
CLIENT_LEFT = "client_disconnected"
_FIRST_SERVER_ERROR = 500


class RequestTrace:
    """Told of a request what happens to it, and ended once. On one event loop.

    The span is made when the body is known, so that what samplers look at is there from its beginning; it begins with
    the head of the request.
    """

    def __init__(
        self,
        tracer: "Tracer",
        parent: "Context",
        scope: Scope,
        *,
        operation: str,
        route: str,
        client: str | None,
        model_names: tuple[str, ...],
        fields: dict[str, Any],
    ) -> None:
        """`fields` are those of the request's lines in the log, which get the ids of the span."""
        self._tracer = tracer
        self._parent = parent
        self._scope = scope
        self._operation = operation
        self._route = route
        self._client = client
        self._model_names = model_names
        self._fields = fields
        self._started_at = time.monotonic()
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._span: Span | None = None
        self._generation: Generation | None = None
        self._choices: list[ChoiceTimes] = []
        self._error: BaseException | None = None

    def on_body(self, body: Mapping[str, Any]) -> None:
        """Begin the span, with what the client asks for."""
        if self._span is None:
            self._begin(body)

    def on_admitted(self, generation: Generation) -> None:
        self._generation = generation

    def on_choice_end(self, times: ChoiceTimes) -> None:
        self._choices.append(times)

    def on_error(self, error: BaseException) -> None:
        """Note what the request is answered with; the last error counts."""
        self._error = error

    def end(self, status: int | None, *, is_complete: bool) -> None:
        """End the span. `status` is that of the answer, if it has begun; `is_complete` tells that its end was sent."""
        from opentelemetry.trace import StatusCode

        span = self._span or self._begin({})
        if not span.is_recording():
            return
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        for name, value in self._answer_attributes().items():
            span.set_attribute(name, value)
        if self._error is not None:
            kind = kind_of(self._error)
            span.set_attribute("error.type", kind.code or kind.type)
            if kind.status >= _FIRST_SERVER_ERROR:
                span.set_status(StatusCode.ERROR)
        elif not is_complete:
            span.set_attribute("error.type", CLIENT_LEFT)
        self._add_parts(span)
        span.end()

    def _begin(self, body: Mapping[str, Any]) -> "Span":
        from opentelemetry.trace import SpanKind

        attributes = operation_attributes(self._operation) | request_attributes(body)
        attributes |= http_attributes(self._scope, self._route, self._client)
        name, model = self._operation, body.get("model")
        if isinstance(model, str):
            attributes["gen_ai.request.model"] = plain(model)
            name = f"{name} {model}" if model in self._model_names else name  # else anybody could make new names
        start = self._ns(self._started_at)
        span = self._tracer.start_span(name, self._parent, SpanKind.SERVER, attributes, start_time=start)
        context = span.get_span_context()
        if context.is_valid:  # else the SDK is told to do nothing
            self._fields["trace_id"] = f"{context.trace_id:032x}"
        if context.is_valid and context.trace_flags.sampled:  # else no collector has a span of this id
            self._fields["span_id"] = f"{context.span_id:016x}"
        self._span = span
        return span

    def _answer_attributes(self) -> dict[str, Value]:
        """Return what the answer is, as far as it has come."""
        generation = self._generation
        if generation is None:
            return {}
        attributes: dict[str, Value] = {
            "gen_ai.response.model": self._model_names[0],
            "gen_ai.usage.input_tokens": generation.usage.prompt_tokens,
        }
        if self._operation in _WITHOUT_OUTPUT:
            return attributes
        choices = sorted(self._choices, key=lambda times: times.index)
        attributes |= {
            "gen_ai.response.id": generation.request.request_id,
            "gen_ai.response.finish_reasons": [_finish_reason(generation, times) for times in choices],
            "gen_ai.usage.output_tokens": sum(times.num_output_tokens for times in choices),
            "gen_ai.usage.cache_read.input_tokens": generation.usage.cached_tokens,
        }
        if (num_thoughts := generation.num_reasoning_tokens) is not None:
            attributes["gen_ai.usage.reasoning.output_tokens"] = num_thoughts
        return attributes

    def _add_parts(self, span: "Span") -> None:
        """Add the spans of where the time went."""
        from opentelemetry.trace import set_span_in_context

        inside = set_span_in_context(span, self._parent)
        choices = sorted(self._choices, key=lambda times: times.index)
        if choices:
            self._add(inside, "prepare", (self._started_at, choices[0].arrived_at), {})
        for times in choices[:MAX_CHOICES]:
            for name, period, attributes in _parts(times):
                self._add(inside, name, period, {"orcinus.choice.index": times.index, **attributes})
        if len(choices) > MAX_CHOICES:
            span.set_attribute("orcinus.choices_without_spans", len(choices) - MAX_CHOICES)

    def _add(self, inside: "Context", name: str, period: tuple[float, float], attributes: dict[str, Value]) -> None:
        start, end = period
        span = self._tracer.start_span(name, inside, attributes=attributes, start_time=self._ns(start))
        span.end(self._ns(max(start, end)))

    def _ns(self, at: float) -> int:
        """Return a time of the monotonic clock as one since 1970: one offset, so that a trace's spans keep in order."""
        return int(at * 1e9) + self._offset_ns


def _finish_reason(generation: Generation, times: ChoiceTimes) -> str:
    """Return why a choice ended, in the words of its API; the conventions say `error` for whatever was cut off."""
    if times.outcome in ("stop", "length"):
        return generation.finish_reason_of(times.index, times.outcome)
    return "error"


def _parts(times: ChoiceTimes) -> Iterator[tuple[str, tuple[float, float], dict[str, Value]]]:
    """Give the parts of a choice's time, as far as it came."""
    end = times.arrived_at if times.ended_at is None else times.ended_at
    scheduled = end if times.first_scheduled_at is None else times.first_scheduled_at
    yield "queue", (times.arrived_at, scheduled), {}
    if times.first_scheduled_at is not None:
        first = end if times.first_token_at is None else times.first_token_at
        sizes = {"orcinus.prompt_tokens": times.num_prompt_tokens, "orcinus.cached_tokens": times.num_cached_tokens}
        yield "prefill", (scheduled, first), {**sizes}
    if times.first_token_at is not None:
        yield "decode", (times.first_token_at, end), {"orcinus.output_tokens": times.num_output_tokens}
    for pause in times.pauses:
        yield "preemption", pause, {}
    for restart in times.restarts:
        yield "restart", restart, {}
