"""Which paths there are: what needs no key, and what takes a place in the engine."""

PUBLIC_PATHS = frozenset({"/live", "/ready", "/health", "/metrics"})

ENGINE_PATHS = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"})
"""Whose requests take a place in the engine."""
