"""What was exported, and who exports it."""

from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from orcinus.server.tracing.tracer import Tracing


@dataclass(frozen=True)
class Exported:
    tracing: Tracing
    exporter: InMemorySpanExporter

    @property
    def server(self) -> ReadableSpan:
        """The one span of the server."""
        [span] = [span for span in self.exporter.get_finished_spans() if span.kind == SpanKind.SERVER]
        return span

    def inside(self, name: str) -> list[ReadableSpan]:
        """The spans of this name, in the order of their beginnings; all are children of the server's."""
        spans = [span for span in self.exporter.get_finished_spans() if span.name == name]
        for span in spans:
            assert span.parent is not None
            assert span.parent.span_id == self.server.context.span_id
            assert span.context.trace_id == self.server.context.trace_id
            assert span.kind == SpanKind.INTERNAL
        return sorted(spans, key=start_of)


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def start_of(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


def end_of(span: ReadableSpan) -> int:
    assert span.end_time is not None
    return span.end_time
