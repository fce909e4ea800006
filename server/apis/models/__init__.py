"""GET /v1/models and /v1/models/{model}. `answer`: the names that are served."""
