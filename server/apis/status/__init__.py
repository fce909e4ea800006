"""GET /live, /ready, /health, /version and /metrics: what the server says of itself."""
