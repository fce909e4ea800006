"""GET /v1/models and /v1/models/{model}: the names that are served. `answer` looks them up; there is no body."""
