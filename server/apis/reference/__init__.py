"""GET /docs and /openapi.json: the API reference of a running server."""
