"""Traces of requests that generate, for OpenTelemetry: the optional extra `orcinus[otel]`.

`tracer`: where spans are sent; `request_trace`: the spans of one request; `attributes`: what they say, by the GenAI and
HTTP conventions; `layer`: the ASGI layer around all others; `parents`: whose trace a request belongs to. Without
`--otlp-traces-endpoint` nothing of OpenTelemetry's SDK is imported.
"""
