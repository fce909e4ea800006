"""Where spans are sent, and who sends them: OpenTelemetry's SDK, in the server's process.

All but the endpoint is told by OpenTelemetry's own variables: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*`. Without one for the sampler the client's decision
holds, and what has no parent is traced.
"""

from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from orcinus.config.settings import Settings, SettingsError
from orcinus.config.version import VERSION
from orcinus.server.operations import GenerationOperation
from orcinus.server.tracing.parents import carrier_of
from orcinus.server.tracing.request_trace import RequestTrace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_NO_OTEL = "otlp_traces_endpoint needs OpenTelemetry's SDK and exporter: pip install 'orcinus[otel]'"


def open_tracing(settings: Settings) -> "Tracing | None":
    """Return what traces requests, if that is wanted. Raises `SettingsError` where the extra is not installed."""
    if settings.otlp_traces_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(_NO_OTEL) from None
    resource = Resource.create({"service.version": VERSION})
    if str(resource.attributes.get("service.name")).startswith("unknown_service"):  # nobody has named it
        resource = resource.merge(Resource({"service.name": "orcinus"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_traces_endpoint)))
    return Tracing(provider)


class Tracing:
    """Begins the traces of requests. `close` sends what is left, and may take a while."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("orcinus", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self,
        scope: Scope,
        operation: GenerationOperation,
        *,
        client: str | None,
        model_names: tuple[str, ...],
        fields: dict[str, Any],
    ) -> RequestTrace:
        """Return the trace of a request whose head has come, as a part of its client's trace if it has one."""
        from opentelemetry.context import Context

        parent = self._propagator.extract(carrier_of(scope), Context())
        return RequestTrace(
            self._tracer,
            parent,
            scope,
            operation=operation.gen_ai_name,
            route=operation.shown_path,
            client=client,
            model_names=model_names,
            fields=fields,
        )

    def close(self) -> None:
        self._provider.shutdown()
